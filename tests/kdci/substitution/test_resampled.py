from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.mapped_images import save_npy
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.deconfounding.known_shift import resample_rows
from kdci.models import PixelModel
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SoftLabelCriterion, SourceContext
from kdci.training.losses import soft_label_kl

PLAIN = DatasetSpec("plain", 3, 8, 1, (0.5,), (0.5,), 0, False, ("a", "b", "c"))
SEED = 3
COUNTS = (9, 3, 1)
"""Images of each class: imbalance 9."""


def make_images() -> Tensor:
    """Return a pool with a known shift: the grey level is ten times the class, and one more."""
    classes = torch.arange(60) % 3
    rows = resample_rows(classes, num_images=13, num_classes=3, imbalance=9, seed=0)
    counts = torch.bincount(classes[rows]).sort(descending=True)
    rank = torch.empty(3, dtype=torch.int64)
    rank[counts.indices] = torch.arange(3)
    assert tuple(counts.values.tolist()) == COUNTS
    grey = (10 * rank[classes[rows]] + 1).to(torch.uint8)
    return grey.view(-1, 1, 1, 1).repeat(1, 1, 8, 8)


def make_source(folder: Path, *, spec: DatasetSpec = PLAIN, seed: int = SEED) -> BankSource:
    folder.mkdir(exist_ok=True)
    save_npy(make_images(), folder / "images.npy")
    bank = ImageBank(folder / "bank.bin", shape=(1, 8, 8), base=folder / "images.npy")
    teacher = PixelModel(torch.nn.Identity(), mean=spec.mean, std=spec.std)
    # A module without weights has no device to tell.
    teacher.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    context = SourceContext(teacher, spec, bank, seed, 0.9, lambda: torch.empty(0))
    return BankSource(context, SimpleNamespace(temperature=7.0))


def test_the_pool_stays_as_it_is(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    assert source.num_preparations == 0 and list(source.prepare()) == []
    assert source.refresh_period is None and source.num_open_world == 0
    for _ in range(3):
        assert source.refresh(source.context.teacher) == {}
        source.batch(4)
    assert torch.equal(source.bank.rows(torch.arange(13)), make_images())
    assert len(source.bank) == 13 and (tmp_path / "bank.bin").stat().st_size == 0


def test_batches_are_a_plain_shuffled_draw_with_the_shift_of_the_pool(tmp_path: Path) -> None:
    source, rows = make_source(tmp_path), ShuffledRows(SEED)
    for size in (5, 8, 26):
        expected = make_images()[rows.next(size, 13)].float() / 255
        assert torch.equal(source.batch(size), expected)
    # The last one was two whole passes.
    shown = torch.bincount((255 * expected[:, 0, 0, 0]).round().long() // 10)
    assert shown.tolist() == [2 * count for count in COUNTS]


def test_batches_are_augmented_as_far_as_the_dataset_allows(tmp_path: Path) -> None:
    cropped = DatasetSpec("cropped", 3, 8, 1, (0.5,), (0.5,), 2, False, ("a", "b", "c"))
    images = make_source(tmp_path, spec=cropped).batch(26)
    padded = (images == 0).flatten(1).any(dim=1)
    assert bool(padded.any()) and not bool((images == 0).flatten(1).all(dim=1).any())


def test_the_loss_is_the_soft_label_loss_at_its_temperature(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    criterion = source.criterion()
    assert isinstance(criterion, SoftLabelCriterion)
    student, teacher = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    terms = criterion(student, teacher)
    assert set(terms) == {"kl"}
    torch.testing.assert_close(terms["kl"], soft_label_kl(student, teacher, 7.0))


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resumes(tmp_path: Path, stop: int) -> None:
    source = make_source(tmp_path / "a")
    for _ in range(stop):
        source.batch(5)
    save_state(tmp_path / "state", source.state_dict())
    other = make_source(tmp_path / "b", seed=99)
    other.reseed(SEED)
    other.load_state_dict(load_state(tmp_path / "state"))
    for size in (5, 20):
        assert torch.equal(source.batch(size), other.batch(size))


def test_seeds_decide_the_order(tmp_path: Path) -> None:
    one, other = make_source(tmp_path / "a"), make_source(tmp_path / "b")
    other.reseed(SEED + 1)
    assert not torch.equal(one.batch(13), other.batch(13))
