from __future__ import annotations

import json

import pytest
import torch

from kdci.data.bank.shuffled_rows import ShuffledRows


def test_each_pass_holds_every_row_once_and_batches_are_full() -> None:
    rows = ShuffledRows(0)
    drawn = torch.cat([rows.next(4, 10) for _ in range(15)])
    assert len(drawn) == 60
    passes = drawn.view(6, 10)
    assert (passes.sort(dim=1).values == torch.arange(10)).all()
    assert len(set(map(tuple, passes.tolist()))) == 6


def test_a_batch_larger_than_the_bank_spans_passes() -> None:
    drawn = ShuffledRows(3).next(25, 10)
    assert sorted(drawn[:10].tolist()) == sorted(drawn[10:20].tolist()) == list(range(10))
    assert len(drawn) == 25


def test_growth_starts_a_new_pass_with_the_new_rows() -> None:
    rows = ShuffledRows(0)
    rows.next(4, 10)
    grown = torch.cat([rows.next(4, 12) for _ in range(3)])
    assert sorted(grown.tolist()) == list(range(12))


def test_resumed_draws_equal_uninterrupted_ones() -> None:
    sizes = [(4, 10), (4, 10), (7, 10), (4, 13), (30, 13), (5, 20)]
    whole = ShuffledRows(5)
    expected = [whole.next(*size) for size in sizes]
    for stop in range(len(sizes) + 1):
        first = ShuffledRows(5)
        for size in sizes[:stop]:
            first.next(*size)
        state = json.loads(json.dumps(first.state_dict()))
        assert set(state) == {"pass", "cursor", "num_rows"}
        torch.manual_seed(stop)
        second = ShuffledRows(5)
        second.load_state_dict(state)
        for size, rows in zip(sizes[stop:], expected[stop:], strict=True):
            assert torch.equal(second.next(*size), rows)


def test_seeds_and_passes_are_unrelated() -> None:
    orders = [ShuffledRows(seed).next(40, 20).view(2, 20) for seed in range(5)]
    assert len(set(map(tuple, torch.cat(orders).tolist()))) == 10
    assert torch.equal(orders[1].flatten(), ShuffledRows(1).next(40, 20))


def test_misuse() -> None:
    with pytest.raises(ValueError, match="seed"):
        ShuffledRows(-1)
    for size, num_rows in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="above 0"):
            ShuffledRows(0).next(size, num_rows)
    with pytest.raises(ValueError, match="cursor"):
        ShuffledRows(0).load_state_dict({"pass": 1, "cursor": 6, "num_rows": 5})
