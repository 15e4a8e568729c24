"""States of the methods that make images in calls: what resuming, seeds and the pool promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.models import PixelModel
from kdci.store.checkpoints import load_state, save_state
from kdci.synthesis.inversion import InversionSource
from tests.kdci.methods import test_cmi, test_deepinv, test_fast
from tests.kdci.methods._tiny import AUGMENTED, make_student, make_teacher

Flatten = Callable[[Any], dict[str, object]]


@dataclass
class Case:
    """A method over a tiny teacher, in batches of 6, of which the pool has two calls."""

    make: Callable[..., InversionSource]
    changes: dict[str, Any] = field(default_factory=dict)
    augmented: DatasetSpec = AUGMENTED
    make_teacher: Callable[[], PixelModel] = make_teacher
    make_student: Callable[[], PixelModel] = make_student


CASES = {
    "cmi": Case(test_cmi.make_source, {"memory_size": 14}),  # which wraps
    "fast": Case(test_fast.make_source, {"reset_after_calls": 1}),
    "fast without meta step": Case(
        test_fast.make_source, {"reset_after_calls": 1, "meta_update": "none"}
    ),
    "deepinv": Case(
        test_deepinv.make_source,
        {"l2_weight": 0.1},
        test_deepinv.FLIPPED,
        lambda: test_deepinv.make_model(1),
        test_deepinv.make_student,
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def rows_of(source: InversionSource) -> Tensor:
    return source.bank.rows(torch.arange(len(source.bank)))


def test_continues_bit_identically(tmp_path: Path, case: Case, flatten: Flatten) -> None:
    def build(name: str) -> InversionSource:
        return case.make(tmp_path / name, spec=case.augmented, warmup_calls=3, **case.changes)

    def distil(source: InversionSource, student: PixelModel) -> list[Tensor]:
        batches = []
        for _ in range(3):
            source.refresh(student)
            batches += [source.batch(5), source.batch(5)]
        return batches

    whole, torn, student = build("whole"), build("torn"), case.make_student()
    list(whole.prepare())
    parts = torn.prepare()
    next(parts)
    middle = torn.state_dict()
    frozen_middle = copy.deepcopy(middle)
    next(parts)  # lost with the crash; its images are cut from the bank
    assert flatten(middle) == flatten(frozen_middle)
    torn = build("torn")
    torn.load_state_dict(middle)
    assert len(torn.bank) == 6 and torn.calls == 1
    assert len(list(torn.prepare())) == 2
    assert flatten(torn.state_dict()) == flatten(whole.state_dict())
    assert flatten(middle) == flatten(frozen_middle)

    whole.refresh(student), whole.batch(5)
    torn.refresh(student), torn.batch(5)
    state = torn.state_dict()
    distil(torn, student)
    torn = build("torn")
    torn.load_state_dict(state)
    expected, got = distil(whole, student), distil(torn, student)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert torn.calls == whole.calls == 7 and len(whole.bank) == 42
    assert flatten(torn.state_dict()) == flatten(whole.state_dict())
    assert torch.equal(rows_of(torn), rows_of(whole))


def test_a_checkpoint_can_hold_it(tmp_path: Path, case: Case, flatten: Flatten) -> None:
    source = case.make(tmp_path / "one")
    for state in (source.state_dict(), (next(source.prepare()), source.state_dict())[1]):
        save_state(tmp_path / "state", state)
        assert flatten(load_state(tmp_path / "state")) == flatten(state)


def test_reseeded_students_meet_other_images_and_resume(
    tmp_path: Path, case: Case, flatten: Flatten
) -> None:
    pool, student = case.make(tmp_path / "pool"), case.make_student()
    list(pool.prepare())
    state = pool.state_dict()
    tail = (tmp_path / "pool" / "tail.bin").read_bytes()

    def start(name: str, seed: int) -> InversionSource:
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "tail.bin").write_bytes(tail)
        source = case.make(tmp_path / name)
        source.load_state_dict(state)
        source.reseed(seed)
        return source

    one, alike, other = start("one", 1), start("alike", 1), start("other", 2)
    # What was learnt is the pool's, whatever the seed.
    for name in pool.kept:
        key = name.lstrip("_")
        kept = [flatten(source.state_dict()[key]) for source in (one, other)]
        assert kept == [flatten(state[key])] * 2
    for source in (one, alike, other):
        source.refresh(student)
    batches = [source.batch(9) for source in (one, alike, other)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    images = [rows_of(source) for source in (one, alike, other)]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0][:12], images[2][:12])  # made before the new seed
    assert not torch.equal(images[0][12:], images[2][12:])
    middle = alike.state_dict()
    resumed = case.make(tmp_path / "alike")
    resumed.reseed(1)
    resumed.load_state_dict(middle)
    assert torch.equal(one.batch(9), resumed.batch(9))
    assert one.refresh(student) == resumed.refresh(student)


def test_seed_decides_all_and_the_global_stream_is_left_alone(
    tmp_path: Path, case: Case, flatten: Flatten
) -> None:
    teacher = case.make_teacher()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = case.make(tmp_path / "one", teacher=teacher)
    list(one.prepare())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two, three = (case.make(tmp_path / name, teacher=teacher) for name in ("two", "three"))
    three.reseed(6)
    list(two.prepare()), list(three.prepare())
    assert flatten(one.state_dict()) == flatten(two.state_dict())
    assert torch.equal(rows_of(one), rows_of(two))
    assert flatten(one.state_dict()) != flatten(three.state_dict())
