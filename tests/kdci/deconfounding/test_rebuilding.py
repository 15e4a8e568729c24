from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.deconfounding import rebuilding
from kdci.deconfounding.confounder import ConfounderDictionary, build_dictionary, predict
from kdci.deconfounding.rebuilding import DictionaryRebuilder
from kdci.models import PixelModel

SHAPE = (1, 8, 8)


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def teacher(tiny_model: Callable[[int], PixelModel]) -> PixelModel:
    return tiny_model(0).eval()


@pytest.fixture
def bank(tmp_path: Path) -> ImageBank:
    bank = ImageBank(tmp_path / "bank.bin", shape=SHAPE)
    bank.append(images(40, seed=0))
    return bank


def predictions_of(teacher: PixelModel, bank: ImageBank) -> Tensor:
    rows = bank.rows(torch.arange(len(bank))).float() / 255
    return predict(teacher, [rows], space="logits")[0]


def start_of(teacher: PixelModel, bank: ImageBank) -> Tensor:
    found = build_dictionary(predictions_of(teacher, bank), num_prototypes=4, seed=7)
    return found.prototypes_ND


def rebuilder(
    teacher: PixelModel, bank: ImageBank, prototypes: Tensor, growth: float = 0.5
) -> DictionaryRebuilder:
    return DictionaryRebuilder(
        teacher=teacher,
        bank=bank,
        space="logits",
        num_prototypes=4,
        growth=growth,
        prototypes_ND=prototypes,
        seed=7,
    )


def assert_equal(one: ConfounderDictionary | None, other: ConfounderDictionary) -> None:
    assert one is not None
    assert torch.equal(one.prototypes_ND, other.prototypes_ND)
    assert torch.equal(one.proportions_N, other.proportions_N)
    assert torch.equal(one.spread_N, other.spread_N)


def test_a_dictionary_comes_each_time_the_bank_has_grown_by_the_share(
    teacher: PixelModel, bank: ImageBank
) -> None:
    made = rebuilder(teacher, bank, start_of(teacher, bank))
    sizes = []
    for step in range(1, 11):
        bank.append(images(10, seed=step))
        if made.offer(step) is not None:
            sizes.append((step, len(bank)))
            assert made.offer(step) is None, "nothing is new"
    assert sizes == [(2, 60), (5, 90), (10, 140)]  # 1.5 x 40, 1.5 x 60, 1.5 x 90 = 135
    assert [step for step, _ in made.built] == [2, 5, 10]


def test_it_is_the_dictionary_of_all_rows_started_from_the_one_before(
    teacher: PixelModel, bank: ImageBank
) -> None:
    start = start_of(teacher, bank)
    made = rebuilder(teacher, bank, start)
    for seed in (1, 2):
        bank.append(images(50, seed=seed))
        expected = build_dictionary(
            predictions_of(teacher, bank), num_prototypes=4, seed=7, start_ND=start
        )
        assert_equal(made.offer(seed), expected)
        start = expected.prototypes_ND


def test_prototypes_keep_their_places(teacher: PixelModel, bank: ImageBank) -> None:
    """More images of the same kind move each z_i a little, and none to another's place."""
    start = start_of(teacher, bank).flip(0)
    made = rebuilder(teacher, bank, start)
    bank.append(images(40, seed=0))  # the pool twice: not even a little
    found = made.offer(1)
    assert found is not None
    torch.testing.assert_close(found.prototypes_ND, start, rtol=1e-4, atol=1e-4)


def test_a_start_that_lost_prototypes_is_no_start(teacher: PixelModel, bank: ImageBank) -> None:
    made = rebuilder(teacher, bank, start_of(teacher, bank)[:3])
    bank.append(images(40, seed=1))
    expected = build_dictionary(predictions_of(teacher, bank), num_prototypes=4, seed=7)
    assert_equal(made.offer(1), expected)


def test_each_image_is_predicted_once(
    teacher: PixelModel, bank: ImageBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counting(model: PixelModel, batches: Iterator[Tensor], **options: Any) -> Any:
        held = list(batches)
        seen.append(sum(map(len, held)))
        return predict(model, iter(held), **options)

    monkeypatch.setattr(rebuilding, "predict", counting)
    made = rebuilder(teacher, bank, start_of(teacher, bank))
    for seed in (1, 2, 3):
        bank.append(images(20 * seed, seed=seed))
        made.offer(seed)
    assert seen == [60, 40, 60] and len(bank) == 160


def test_a_restored_one_goes_on_as_if_never_stopped(teacher: PixelModel, bank: ImageBank) -> None:
    start = start_of(teacher, bank)
    made = rebuilder(teacher, bank, start)
    bank.append(images(30, seed=1))
    assert made.offer(1) is not None
    bank.append(images(10, seed=2))
    assert made.offer(2) is None
    restored = rebuilder(teacher, bank, torch.zeros_like(start))
    restored.load_state_dict(made.state_dict())
    bank.append(images(60, seed=3))
    expected = made.offer(3)
    assert expected is not None
    assert_equal(restored.offer(3), expected)
    assert [step for step, _ in restored.built] == [1, 3]
    for (_, one), (_, other) in zip(restored.built, made.built, strict=True):
        assert_equal(one, other)


def test_the_teacher_is_left_as_it_was(teacher: PixelModel, bank: ImageBank) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    made = rebuilder(teacher, bank, start_of(teacher, bank))
    bank.append(images(40, seed=1))
    assert made.offer(1) is not None
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
