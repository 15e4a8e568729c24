"""Batches drawn evenly over strata, with every method: see ``BankSource.stratify``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.deconfounding.strata import class_strata
from kdci.models import PixelModel
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.bank_source import BankSource
from kdci.substitution.registry import names

ALL = (*names(), "resampled")
GROWING = ("fast", "cmi", "deepinv")
"""Add images to the bank while distilling."""

SEED = 11
"""Of the fixture's context."""

PLAIN = DatasetSpec("plain", 3, 8, 1, (0.4,), (0.3,), 0, False, ("a", "b", "c"))
"""Not augmented: the images of a batch are those of the bank."""

WHITE = 3
"""The stratum of white images, which no method makes."""

MakeModel = Callable[[int], PixelModel]
Prepared = Callable[..., BankSource]


@pytest.fixture
def prepared(
    tmp_path: Path, tiny_model: MakeModel, make_source: Callable[..., BankSource]
) -> Prepared:
    """Return a maker of sources with their pool, by method and folder."""

    def make(method: str, place: str = "a") -> BankSource:
        source = make_source(method, tmp_path / place, tiny_model(0).eval(), spec=PLAIN)
        list(source.prepare())
        return source

    return make


class Strata:
    """A skewed split by one pixel: of the remainders of 7, 0 and 1 are strata, and all others."""

    def __init__(self) -> None:
        self.num_asked = 0

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        assert images_BCHW.dtype == torch.float32 and images_BCHW.shape[1:] == (1, 8, 8)
        self.num_asked += len(images_BCHW)
        values = (255 * images_BCHW[:, 0, 3, 4]).round().long()
        white = (images_BCHW == 1).flatten(1).all(dim=1)
        return torch.where(white, WHITE, (values % 7).clamp(max=2))


def bank_strata(source: BankSource, num_rows: int | None = None) -> Tensor:
    """Return the stratum of each row that batches are drawn from."""
    num_rows = len(source.bank) if num_rows is None else num_rows
    return Strata()(source.bank.rows(torch.arange(num_rows)).float() / 255)


def drawn_part(method: str, source: BankSource, size: int) -> tuple[Tensor, Tensor]:
    """Return the images of a batch that are out of the bank, and the strata to draw from."""
    batch = source.batch(size)
    assert batch.shape == (size, 1, 8, 8) and batch.dtype == torch.float32
    if method == "mosaick":
        return batch[size // 2 :], bank_strata(source, source.num_open_world)
    return batch, bank_strata(source)


def assert_even(images: Tensor, pool_strata: Tensor) -> None:
    """Check that counts are off even shares over what strata there are by less than one."""
    strata = set(pool_strata.tolist())
    even = len(images) / len(strata)
    counts = torch.bincount(Strata()(images), minlength=WHITE + 1).tolist()
    for stratum, count in enumerate(counts):
        wanted = even if stratum in strata else 0
        assert math.floor(wanted) <= count <= math.ceil(wanted)


def as_rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in (255 * images).round().to(torch.uint8)]


@pytest.mark.parametrize("method", ALL)
def test_without_strata_batches_are_a_plain_shuffled_draw(method: str, prepared: Prepared) -> None:
    source, rows = prepared(method), ShuffledRows(SEED)
    num_rows = source.num_open_world if method == "mosaick" else len(source.bank)
    for size in (5, 8, 30):
        images, _ = drawn_part(method, source, size)
        expected = source.bank.rows(rows.next(len(images), num_rows)).float() / 255
        assert torch.equal(images, expected)
    assert "strata" not in source.state_dict()


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("size", [4, 11, 60])
def test_batches_are_even_over_the_strata(method: str, size: int, prepared: Prepared) -> None:
    source = prepared(method)
    source.stratify(Strata(), max_repeats=math.inf)
    sizes: set[int] = set()
    for _ in range(5):
        images, pool = drawn_part(method, source, size)
        assert_even(images, pool)
        sizes = set(torch.bincount(pool).tolist()) - {0}
    # Or an even draw would be the plain one. What generators make is not the same everywhere.
    assert len(sizes) > 1 or method not in ("mosaick", "dfnd", "noise", "resampled")


@pytest.mark.parametrize("method", ALL)
def test_at_a_cap_of_one_the_draw_is_in_proportion(method: str, prepared: Prepared) -> None:
    source = prepared(method)
    source.stratify(Strata(), max_repeats=1)
    for size in (4, 60):
        images, pool = drawn_part(method, source, size)
        counts = torch.bincount(Strata()(images), minlength=WHITE + 1).tolist()
        sizes = torch.bincount(pool, minlength=WHITE + 1).tolist()
        for count, rows in zip(counts, sizes, strict=True):
            wanted = len(images) * rows / len(pool)
            assert math.floor(wanted - 1e-9) <= count <= math.ceil(wanted + 1e-9)


@pytest.mark.parametrize("method", ALL)
def test_no_image_of_a_stratum_is_left_out(method: str, prepared: Prepared) -> None:
    source = prepared(method)
    source.stratify(Strata(), max_repeats=math.inf)
    num_rows = source.num_open_world if method == "mosaick" else len(source.bank)
    rows = set(as_rows(source.bank.rows(torch.arange(num_rows)).float() / 255))
    # Twice as many as the largest stratum has, of each; half of MosaicKD's are made.
    images, _ = drawn_part(method, source, 4 * 3 * num_rows)
    assert set(as_rows(images)) == rows


@pytest.mark.parametrize("method", [name for name in ALL if name != "mosaick"])
def test_images_that_join_the_bank_are_drawn(
    method: str, prepared: Prepared, tiny_model: MakeModel
) -> None:
    source, strata = prepared(method), Strata()
    source.stratify(strata, max_repeats=math.inf)
    before = len(source.bank)
    source.batch(4)
    source.refresh(tiny_model(1))
    source.bank.append(torch.ones(2, 1, 8, 8))
    images, pool = drawn_part(method, source, 4 * 2 * len(source.bank))
    assert_even(images, pool)
    white = int((Strata()(images) == WHITE).sum())
    assert white >= len(images) // len(set(pool.tolist())) > 2
    assert set(as_rows(images)) == set(as_rows(source.bank.rows(torch.arange(len(pool))) / 255))
    assert len(pool) == before + 2 + (6 if method in GROWING else 0)
    source.batch(4)
    assert strata.num_asked == len(pool)  # each image's stratum is found once


@pytest.mark.parametrize("method", ALL)
def test_goes_on_from_a_saved_state(
    method: str, tmp_path: Path, prepared: Prepared, tiny_model: MakeModel
) -> None:
    """As the distill stage does: load the pool's state, seed, stratify, then load its own."""
    source = prepared(method)
    save_state(tmp_path / "pool", source.state_dict())
    made = source.bank.rows(torch.arange(len(source.bank)))
    source.reseed(5)
    source.stratify(Strata(), max_repeats=2)
    for stop in range(3):
        save_state(tmp_path / "state", source.state_dict())
        other = prepared(method, f"b{stop}")
        other.load_state_dict(load_state(tmp_path / "pool"))
        other.reseed(5)
        grown = source.bank.rows(torch.arange(len(made), len(source.bank)))
        other.bank.append(grown.float() / 255)
        other.bank.append(torch.zeros(1, 1, 8, 8))  # of a step that the state has not seen
        other.stratify(Strata(), max_repeats=2)
        other.load_state_dict(load_state(tmp_path / "state"))
        for size in (7, 7):
            assert torch.equal(source.batch(size), other.batch(size))
            for each in (source, other):
                each.refresh(tiny_model(1))
        assert torch.equal(source.batch(9), other.batch(9))


@pytest.mark.parametrize("method", ALL)
def test_students_with_seeds_of_their_own_meet_other_batches(
    method: str, prepared: Prepared
) -> None:
    drawn = []
    for place, seed in (("a", 5), ("b", 6), ("c", 5)):
        source = prepared(method, place)
        source.reseed(seed)
        source.stratify(Strata(), max_repeats=math.inf)
        drawn.append(source.batch(12))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("method", ALL)
def test_strata_leave_synthesis_as_it_was(
    method: str, prepared: Prepared, tiny_model: MakeModel
) -> None:
    """What a refresh makes depends on the streams, not on how batches are drawn."""
    plain, stratified = prepared(method, "a"), prepared(method, "b")
    stratified.stratify(Strata(), max_repeats=math.inf)
    for source in (plain, stratified):
        source.refresh(tiny_model(1))
    rows = torch.arange(len(plain.bank))
    assert torch.equal(plain.bank.rows(rows), stratified.bank.rows(rows))
    assert torch.equal(plain.random.get_state(), stratified.random.get_state())  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ALL)
def test_the_teachers_classes_serve_as_strata(
    method: str, prepared: Prepared, tiny_model: MakeModel
) -> None:
    """Also where a batch has no made image, as the smallest of MosaicKD's."""
    source = prepared(method)
    source.stratify(class_strata(tiny_model(2).eval()), max_repeats=3)
    for size in (1, 2, 9):
        assert source.batch(size).shape == (size, 1, 8, 8)


class TestMosaick:
    def test_made_images_are_picked_evenly_out_of_twice_as_many(self, prepared: Prepared) -> None:
        """The twin's batch of twice the size holds the same candidates."""
        source, twin = prepared("mosaick", "a"), prepared("mosaick", "b")
        source.stratify(Strata(), max_repeats=math.inf)
        for size in (12, 7):
            num_made = size // 2
            made, candidates = source.batch(size)[:num_made], twin.batch(4 * num_made)
            candidates = candidates[: 2 * num_made]
            queues: list[list[int]] = [[], [], [], []]
            for index, stratum in enumerate(Strata()(candidates).tolist()):
                queues[stratum].append(index)
            picked: list[int] = []
            while len(picked) < num_made:
                picked += sorted(queue.pop(0) for queue in queues if queue)
            assert torch.equal(made, candidates[picked[:num_made]])

    def test_the_made_part_of_the_bank_is_never_drawn(self, prepared: Prepared) -> None:
        source = prepared("mosaick")
        source.stratify(Strata(), max_repeats=math.inf)
        assert source.num_open_world < len(source.bank)
        chosen = source.bank.rows(torch.arange(source.num_open_world)).float() / 255
        assert set(as_rows(source.batch(200)[100:])) <= set(as_rows(chosen))
