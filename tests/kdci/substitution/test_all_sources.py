"""What every source promises, whatever its method: see ``BankSource``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.models import PixelModel
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.bank_source import BankSource
from kdci.substitution.registry import names

ALL = names()
MakeModel = Callable[[int], PixelModel]
MakeSource = Callable[[str, Path, PixelModel], BankSource]


class Spy(PixelModel):
    """Notes the range of what it is shown."""

    seen: list[tuple[float, float]]

    def forward(self, images_BCHW: Tensor) -> Any:
        shown = images_BCHW.detach()
        self.seen.append((float(shown.min()), float(shown.max())))
        return super().forward(images_BCHW)


def spy_on(model: PixelModel) -> Spy:
    model.__class__ = Spy
    assert isinstance(model, Spy)
    model.seen = []
    return model


@pytest.mark.parametrize("method", ALL)
def test_all_images_meet_the_one_normalisation(
    method: str, tmp_path: Path, tiny_model: MakeModel, make_source: MakeSource
) -> None:
    """Made, chosen or sampled, the models see them in [0, 1] and normalise them themselves."""
    teacher, student = spy_on(tiny_model(0).eval()), spy_on(tiny_model(1))
    source = make_source(method, tmp_path, teacher)
    list(source.prepare())
    source.refresh(student)
    assert teacher.seen or method == "noise"  # which asks nobody
    seen = teacher.seen + student.seen
    if method == "deepinv":  # starts a call from noise that only its first step clamps
        seen = teacher.seen[1::2] + student.seen[1::2]
    # A pixel that is rescaled twice may miss the ends by rounding.
    assert all(low > -1e-5 and high < 1 + 1e-5 for low, high in seen)
    batch = source.batch(6)
    assert batch.shape == (6, 1, 8, 8) and batch.dtype == torch.float32
    assert float(batch.min()) >= 0 and float(batch.max()) <= 1


@pytest.mark.parametrize("method", ALL)
def test_the_student_and_the_teacher_stay_as_they_were(
    method: str, tmp_path: Path, tiny_model: MakeModel, make_source: MakeSource
) -> None:
    teacher, student = tiny_model(0).eval(), tiny_model(1).train()
    source = make_source(method, tmp_path, teacher)
    list(source.prepare())
    before = copy.deepcopy([teacher.state_dict(), student.state_dict()])
    for _ in range(3):
        source.refresh(student)
    for model, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(weight.requires_grad for weight in model.parameters())
        assert all(weight.grad is None for weight in model.parameters())
    assert all(module.training for module in student.modules())
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("method", ALL)
def test_the_global_stream_is_neither_used_nor_moved(
    method: str, tmp_path: Path, tiny_model: MakeModel, make_source: MakeSource
) -> None:
    batches = []
    for place, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        source = make_source(method, tmp_path / place, tiny_model(0).eval())
        list(source.prepare())
        source.refresh(tiny_model(1))
        batches.append(source.batch(6))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*batches)


@pytest.mark.parametrize("method", ALL)
def test_goes_on_from_a_saved_state_among_students(
    method: str, tmp_path: Path, tiny_model: MakeModel, make_source: MakeSource
) -> None:
    """As the stages do: the pool is made, stored, and distilled on with another seed."""
    source = make_source(method, tmp_path / "a", tiny_model(0).eval())
    list(source.prepare())
    save_state(tmp_path / "state", source.state_dict())
    made = source.bank.rows(torch.arange(len(source.bank)))
    other = make_source(method, tmp_path / "b", tiny_model(0).eval())
    other.bank.append(made.float() / 255)
    other.load_state_dict(load_state(tmp_path / "state"))
    assert list(other.prepare()) == []
    for each in (source, other):
        each.reseed(5)
        each.refresh(tiny_model(1))
    assert torch.equal(source.batch(6), other.batch(6))
    assert len(source.bank) == len(other.bank)
