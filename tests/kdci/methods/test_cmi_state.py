from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.methods.cmi import CmiSource
from kdci.models import PixelModel
from tests.kdci.methods._tiny import (
    AUGMENTED,
    make_student,
    make_teacher,
)
from tests.kdci.methods.test_cmi import make_source


def same(left: Any, right: Any, flatten: Callable[[Any], dict[str, object]]) -> bool:
    return flatten(left) == flatten(right)


class TestState:
    def test_continues_bit_identically(
        self, tmp_path: Path, flatten: Callable[[Any], dict[str, object]]
    ) -> None:
        def build(name: str) -> CmiSource:
            return make_source(tmp_path / name, spec=AUGMENTED, warmup_calls=3, memory_size=14)

        def distil(source: CmiSource, student: PixelModel) -> list[Tensor]:
            batches = []
            for _ in range(3):
                source.refresh(student)
                batches += [source.batch(5), source.batch(5)]
            return batches

        whole, torn, student = build("whole"), build("torn"), make_student()
        list(whole.prepare())
        parts = torn.prepare()
        next(parts)
        middle = torn.state_dict()
        frozen_middle = copy.deepcopy(middle)
        next(parts)  # lost with the crash; its images are cut from the bank
        assert same(middle, frozen_middle, flatten)
        torn = build("torn")
        torn.load_state_dict(middle)
        assert len(torn.bank) == 6
        list(torn.prepare())
        assert same(torn.state_dict(), whole.state_dict(), flatten)
        assert same(middle, frozen_middle, flatten)

        whole.refresh(student), whole.batch(5)
        torn.refresh(student), torn.batch(5)
        state = torn.state_dict()  # the memory has wrapped
        distil(torn, student)
        torn = build("torn")
        torn.load_state_dict(state)
        expected, got = distil(whole, student), distil(torn, student)
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
        assert same(torn.state_dict(), whole.state_dict(), flatten)
        rows = torch.arange(len(whole.bank))
        assert torch.equal(torn.bank.rows(rows), whole.bank.rows(rows))

    def test_a_checkpoint_can_hold_it(
        self, tmp_path: Path, flatten: Callable[[Any], dict[str, object]]
    ) -> None:
        from kdci.store.checkpoints import load_state, save_state

        source = make_source(tmp_path / "one")
        for state in (source.state_dict(), (next(source.prepare()), source.state_dict())[1]):
            save_state(tmp_path / "state", state)
            assert same(load_state(tmp_path / "state"), state, flatten)

    def test_reseeded_students_meet_other_images_and_resume(
        self, tmp_path: Path, flatten: Callable[[Any], dict[str, object]]
    ) -> None:
        pool, student = make_source(tmp_path / "pool"), make_student()
        list(pool.prepare())
        state = pool.state_dict()
        tail = (tmp_path / "pool" / "tail.bin").read_bytes()

        def start(name: str, seed: int) -> CmiSource:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "tail.bin").write_bytes(tail)
            source = make_source(tmp_path / name)
            source.load_state_dict(state)
            source.reseed(seed)
            return source

        one, alike, other = start("one", 1), start("alike", 1), start("other", 2)
        # Head and memory are the pool's, whatever the seed.
        kept = [s.state_dict()["discrimination"] for s in (one, other)]
        assert same(kept[0], state["discrimination"], flatten) and same(*kept, flatten)
        for source in (one, alike, other):
            source.refresh(student)
        batches = [source.batch(9) for source in (one, alike, other)]
        assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
        middle = alike.state_dict()
        resumed = make_source(tmp_path / "alike")
        resumed.reseed(1)
        resumed.load_state_dict(middle)
        assert torch.equal(one.batch(9), resumed.batch(9))
        assert one.refresh(student) == resumed.refresh(student)

    def test_seed_decides_all_and_the_global_stream_is_left_alone(
        self, tmp_path: Path, flatten: Callable[[Any], dict[str, object]]
    ) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = make_source(tmp_path / "one", teacher=(teacher := make_teacher()))
        torch.set_rng_state(before)
        two = make_source(tmp_path / "two", teacher=teacher)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        list(one.prepare()), list(two.prepare())
        assert same(one.state_dict(), two.state_dict(), flatten)
        three = make_source(tmp_path / "three", teacher=teacher)
        three.reseed(6)
        list(three.prepare())
        assert not same(one.state_dict(), three.state_dict(), flatten)
