from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdci.data.bank.stratified_rows import StratifiedRows, pick_evenly, stratum_shares

SEED = 5
SIZES = (12, 3, 0, 5)
"""Rows of each stratum; one is empty."""
STRATA = torch.tensor([s for s, size in enumerate(SIZES) for _ in range(size)])
STRATA = STRATA[torch.randperm(len(STRATA), generator=torch.Generator().manual_seed(0))]


def make_rows(seed: int = SEED, strata: Tensor = STRATA, **options: Any) -> StratifiedRows:
    rows = StratifiedRows(seed, **options)
    rows.extend(strata)
    return rows


def naive_shares(sizes: list[int], cap: float) -> list[Fraction]:
    """Return even shares; again and again, whoever is over the cap is held there for good."""
    total = sum(sizes)
    free = {s for s, size in enumerate(sizes) if size}
    most = {s: Fraction(1) if math.isinf(cap) else Fraction(cap) * sizes[s] / total for s in free}
    shares = [Fraction(0)] * len(sizes)
    while True:
        held = sum(shares[s] for s in range(len(sizes)) if s not in free)
        even = (1 - held) / len(free) if free else Fraction(0)
        over = {s for s in free if most[s] < even}
        if not over:
            for s in free:
                shares[s] = even
            return shares
        for s in over:
            shares[s] = most[s]
        free -= over


class TestShares:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(
        sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
        cap=st.one_of(st.integers(4, 40).map(lambda x: x / 4), st.just(1.0), st.just(math.inf)),
    )
    def test_equal_the_naive_filling(self, sizes: list[int], cap: float) -> None:
        shares = stratum_shares(torch.tensor(sizes), max_repeats=cap)
        assert shares.dtype == torch.float64
        expected = [float(share) for share in naive_shares(sizes, cap)]
        assert shares.tolist() == pytest.approx(expected, abs=1e-12)
        assert float(shares.sum()) == pytest.approx(1, abs=1e-12)
        for share, size in zip(shares.tolist(), sizes, strict=True):
            assert share <= cap * size / sum(sizes) * (1 + 1e-12) if size else share == 0
        # A larger stratum never has the smaller share.
        ordered = [share for _, share in sorted(zip(sizes, shares.tolist(), strict=True))]
        assert all(low <= high + 1e-12 for low, high in pairwise(ordered))

    def test_by_hand(self) -> None:
        """Of 100 rows 2, 8, 30 and 60 at a cap of 2: 0.04 and 0.16, and 0.4 for the others."""
        shares = stratum_shares(torch.tensor([60, 2, 30, 8, 0]), max_repeats=2)
        assert shares.tolist() == pytest.approx([0.4, 0.04, 0.4, 0.16, 0])

    def test_the_ends_of_the_cap(self) -> None:
        sizes = torch.tensor([7, 0, 1, 92])
        proportional = stratum_shares(sizes, max_repeats=1)
        assert proportional.tolist() == pytest.approx([0.07, 0, 0.01, 0.92])
        assert stratum_shares(sizes).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])

    @pytest.mark.parametrize(
        ("sizes", "cap"), [([], 1), ([0, 0], 1), ([3], 0.99), ([3], math.nan), ([3], -1)]
    )
    def test_misuse(self, sizes: list[int], cap: float) -> None:
        with pytest.raises(ValueError, match="need rows and max_repeats >= 1"):
            stratum_shares(torch.tensor(sizes, dtype=torch.int64), max_repeats=cap)


class TestStratifiedRows:
    @pytest.mark.parametrize("cap", [1.0, 1.5, math.inf])
    @pytest.mark.parametrize("size", [1, 2, 7, 50])
    def test_every_batch_is_as_even_as_whole_images_allow(self, cap: float, size: int) -> None:
        rows = make_rows(max_repeats=cap)
        expected = [float(size * share) for share in naive_shares(list(SIZES), cap)]
        for _ in range(40):
            drawn = rows.next(size)
            assert drawn.shape == (size,) and drawn.dtype == torch.int64
            counts = torch.bincount(STRATA[drawn], minlength=len(SIZES)).tolist()
            for count, share in zip(counts, expected, strict=True):
                assert math.floor(share - 1e-9) <= count <= math.ceil(share + 1e-9)

    @pytest.mark.parametrize("offset", [0.0, 1 - 2**-53])
    @pytest.mark.parametrize("size", [1, 3, 4, 100])
    def test_the_ends_of_the_draw_fall_into_strata_that_have_rows(
        self, offset: float, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first place is 0, where an empty stratum lies; the last one rounds to 1."""
        strata = torch.tensor([1, 1, 3, 6, 3])
        rows = make_rows(strata=strata)
        drawn = torch.tensor(offset, dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: drawn)
        counts = torch.bincount(strata[rows.next(size)], minlength=7)[[1, 3, 6]]
        assert int(counts.sum()) == size
        # A place on a border may be rounded into either stratum.
        assert int(counts.max() - counts.min()) <= 2

    @pytest.mark.parametrize("cap", [1.0, 1.5, math.inf])
    def test_many_small_batches_have_the_shares(self, cap: float) -> None:
        """Three rows a batch can not be even: what they are short of evens out."""
        rows = make_rows(max_repeats=cap)
        assert rows.shares.tolist() == pytest.approx(list(map(float, naive_shares([*SIZES], cap))))
        counts = torch.zeros(len(STRATA))
        for _ in range(2000):
            counts += torch.bincount(rows.next(3), minlength=len(STRATA))
        by_stratum = torch.zeros(len(SIZES)).index_add_(0, STRATA, counts) / 6000
        torch.testing.assert_close(by_stratum.double(), rows.shares, atol=0.015, rtol=0)
        # Without replacement: of one stratum no row is more than one pass ahead.
        for stratum in (0, 1, 3):
            of_stratum = counts[stratum == STRATA]
            assert float(of_stratum.max() - of_stratum.min()) <= 1

    def test_no_row_repeats_before_all_of_its_stratum_were_drawn(self) -> None:
        rows = make_rows()
        drawn = torch.cat([rows.next(4) for _ in range(120)])
        for stratum, size in enumerate(SIZES):
            of_stratum = drawn[STRATA[drawn] == stratum]
            passes = [p for p in of_stratum.split(size) if len(p) == size] if size else []
            assert len(passes) >= 10 or not size
            members = torch.nonzero(stratum == STRATA).flatten()
            assert all(torch.equal(p.sort().values, members) for p in passes)
            assert len({tuple(p.tolist()) for p in passes}) > 1 or not size  # shuffled anew

    def test_a_batch_larger_than_a_stratum_repeats_it_evenly(self) -> None:
        counts = torch.bincount(make_rows().next(60), minlength=len(STRATA))
        assert counts[STRATA == 0].sum() == counts[STRATA == 1].sum() == 20
        assert sorted(counts[STRATA == 1].tolist()) == [6, 7, 7]
        assert set(counts[STRATA == 0].tolist()) == {1, 2}

    def test_rows_that_join_are_drawn(self) -> None:
        rows = make_rows()
        rows.next(5)
        joining = torch.tensor([2, 1, 6, 2])  # a stratum that was empty, and a new one
        rows.extend(joining)
        assert len(rows) == 24
        assert rows.shares.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2, 0, 0, 0.2])
        strata = torch.cat([STRATA, joining])
        drawn = rows.next(60)
        assert torch.bincount(strata[drawn], minlength=7).tolist() == [12, 12, 12, 12, 0, 0, 12]
        assert set(range(20, 24)) <= set(drawn.tolist())

    def test_a_stratum_without_newcomers_goes_on_with_its_pass(self) -> None:
        rows, members = make_rows(), torch.nonzero(STRATA == 3).flatten()
        drawn = [rows.next(8)]
        rows.extend(torch.tensor([7, 7, 7]))
        drawn.append(rows.next(40))
        of_stratum = [row for row in torch.cat(drawn).tolist() if row in members]
        assert sorted(of_stratum[:5]) == sorted(of_stratum[5:10]) == members.tolist()

    def test_growth_in_parts_is_growth_at_once(self) -> None:
        whole, parts = make_rows(), StratifiedRows(SEED)
        for part in STRATA.int().split(3):
            parts.extend(part)
        parts.extend(STRATA[:0])
        assert torch.equal(whole.next(50), parts.next(50))

    def test_a_resumed_run_draws_what_the_whole_one_would_have(self) -> None:
        def step(rows: StratifiedRows, number: int) -> Tensor:
            if number in (0, 3, 6):
                rows.extend([STRATA, torch.tensor([2, 2]), torch.tensor([9])][number // 3])
            return rows.next((4, 7, 30)[number % 3])

        whole = StratifiedRows(SEED)
        expected = [step(whole, number) for number in range(9)]
        for stop in range(10):
            first, second = StratifiedRows(SEED), StratifiedRows(SEED)
            for number in range(stop):
                step(first, number)
            state = first.state_dict()
            json.dumps(state["orders"])
            torch.manual_seed(stop)
            second.load_state_dict(state)
            assert len(second) == len(first)
            for number in range(stop, 9):
                assert torch.equal(step(second, number), expected[number])

    def test_a_state_is_loaded_over_a_later_one(self) -> None:
        rows = make_rows()
        rows.next(3)
        state = rows.state_dict()
        expected = rows.next(9)
        rows.extend(torch.tensor([8, 9]))
        rows.next(30)
        rows.load_state_dict(state)
        assert len(rows) == 20 and torch.equal(rows.next(9), expected)
        rows.load_state_dict(StratifiedRows(SEED).state_dict())
        assert len(rows) == 0 and not len(rows.shares)

    def test_seeds_and_strata_are_unrelated(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        orders = [tuple(make_rows(seed).next(60).tolist()) for seed in range(6)]
        assert len(set(orders)) == 6 and orders[SEED] == tuple(make_rows().next(60).tolist())
        assert torch.equal(torch.get_rng_state(), before)
        # Two strata of one size are not in the same order, be it of one seed or of neighbours.
        even = torch.arange(40) % 2
        passes = [make_rows(seed, even).next(40).view(2, 20) // 2 for seed in range(4)]
        assert len({tuple(order) for order in torch.cat(passes).tolist()}) == 8

    def test_misuse(self) -> None:
        with pytest.raises(ValueError, match="need a size and rows, got 3 and 0"):
            StratifiedRows(SEED).next(3)
        with pytest.raises(ValueError, match="need a size and rows, got 0 and 20"):
            make_rows().next(0)
        with pytest.raises(ValueError, match="counted from 0"):
            make_rows(strata=torch.tensor([0, -1]))
        with pytest.raises(ValueError, match="max_repeats >= 1"):
            make_rows(max_repeats=0.5)
        with pytest.raises(ValueError):
            StratifiedRows(-1)


def round_robin(strata: list[int], size: int) -> list[int]:
    """Return rounds over the strata, each of which hands out its next image if it has one."""
    queues: dict[int, list[int]] = {}
    for index, stratum in enumerate(strata):
        queues.setdefault(stratum, []).append(index)
    picked: list[int] = []
    while len(picked) < size:
        turn = sorted(queue.pop(0) for queue in queues.values() if queue)
        picked += turn[: size - len(picked)]
    return picked


class TestPickEvenly:
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(data=st.data(), strata=st.lists(st.integers(0, 6), max_size=40))
    def test_equals_a_round_robin(self, data: st.DataObject, strata: list[int]) -> None:
        size = data.draw(st.integers(0, len(strata)))
        got = pick_evenly(torch.tensor(strata, dtype=torch.int64), size)
        assert got.tolist() == round_robin(strata, size) and got.dtype == torch.int64

    def test_by_hand(self) -> None:
        strata = torch.tensor([4, 4, 4, 4, 0, 4, 2, 0])
        assert pick_evenly(strata, 3).tolist() == [0, 4, 6]  # one of each
        assert pick_evenly(strata, 6).tolist() == [0, 4, 6, 1, 7, 2]  # stratum 2 is used up
