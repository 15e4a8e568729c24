from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from kdci.synthesis.feature_memory import FeatureMemory


def rows(*numbers: int, d: int = 3) -> Tensor:
    """Return one row per number n: local view all n, global view all -n."""
    values = torch.tensor(numbers, dtype=torch.float32)[:, None, None]
    return torch.cat([values, -values], dim=1).expand(-1, -1, d).clone()


def numbers_of(drawn: Tensor) -> list[int]:
    assert torch.equal(drawn[:, 0], -drawn[:, 1])  # the two views stay together
    return [int(value) for value in drawn[:, 0, 0]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_newest_rows_stay() -> None:
    memory = FeatureMemory(5, 3)
    expected: list[int] = []
    for batch in ([1, 2], [3, 4], [5, 6], [7, 8], [9, 10, 11, 12, 13], [14]):
        memory.add(rows(*batch))
        expected = [*expected, *batch][-5:]
        assert sorted(numbers_of(memory.rows)) == expected
        assert len(memory) == len(expected)
    # A row overwrites the oldest one, where that lay.
    assert numbers_of(memory.rows) == [11, 12, 13, 14, 10]


@pytest.mark.parametrize("batches", [2, 3, 4, 5])
def test_a_full_memory_gives_as_many_negatives_as_asked(batches: int) -> None:
    """Public code gives none in the call after the pointer returned to 0."""
    memory = FeatureMemory(6, 3)
    for index in range(batches):
        memory.add(rows(3 * index + 1, 3 * index + 2, 3 * index + 3))
    drawn = numbers_of(memory.draw(4, seeded()))
    assert len(drawn) == len(set(drawn)) == 4
    assert set(drawn) <= set(range(3 * batches - 5, 3 * batches + 1))


def test_fewer_than_asked_are_all_and_none_are_none() -> None:
    memory = FeatureMemory(6, 3)
    assert memory.draw(4, seeded()).shape == (0, 2, 3)
    memory.add(rows(1, 2, 3))
    assert sorted(numbers_of(memory.draw(4, seeded()))) == [1, 2, 3]
    assert memory.draw(0, seeded()).shape == (0, 2, 3)


def test_every_row_is_drawn_equally_often() -> None:
    memory, random = FeatureMemory(8, 1), seeded()
    memory.add(rows(*range(8), d=1))
    drawn = torch.cat([memory.draw(3, random)[:, 0, 0] for _ in range(2000)])
    counts = drawn.long().bincount(minlength=8)
    assert int((counts - 750).abs().max()) < 120


def test_rows_are_copies_without_gradient() -> None:
    memory = FeatureMemory(4, 3)
    added = rows(1, 2).requires_grad_()
    memory.add(added * 1)
    drawn = memory.draw(2, seeded())
    assert not drawn.requires_grad and not memory.rows.requires_grad
    drawn.zero_()
    memory.rows.zero_()
    with torch.no_grad():
        added.zero_()
    assert sorted(numbers_of(memory.rows)) == [1, 2]


def test_half_precision_is_stored_as_float32() -> None:
    memory = FeatureMemory(4, 3)
    memory.add(rows(1).bfloat16())
    assert memory.rows.dtype == torch.float32


def test_space_grows_with_the_rows() -> None:
    memory = FeatureMemory(40960, 2704)
    taken = []
    for _ in range(5):
        memory.add(torch.zeros(4, 2, 2704))
        taken.append(len(memory._store))
    assert all(4 * n <= space <= 8 * n for n, space in enumerate(taken, start=1))
    small = FeatureMemory(5, 1)
    for _ in range(4):
        small.add(torch.zeros(2, 2, 1))
        assert len(small._store) <= 5


@pytest.mark.parametrize("before", [0, 2, 5, 7])
def test_state_continues_and_shares_nothing(before: int) -> None:
    memory = FeatureMemory(5, 3)
    for number in range(before):
        memory.add(rows(number))
    state = memory.state_dict()
    frozen = copy.deepcopy(state)
    other = FeatureMemory(5, 3)
    other.add(rows(50, 51, 52))
    other.load_state_dict(state)
    for number in (100, 101, 102):
        memory.add(rows(number))
        other.add(rows(number))
        assert torch.equal(other.draw(4, seeded(1)), memory.draw(4, seeded(1)))
    assert torch.equal(other.rows, memory.rows) and len(other) == len(memory)
    assert torch.equal(state["rows"], frozen["rows"]) and state["pointer"] == frozen["pointer"]


def test_misuse_is_refused() -> None:
    memory = FeatureMemory(4, 3)
    for bad in (torch.zeros(5, 2, 3), torch.zeros(2, 2, 4), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="at most 4 of shape"):
            memory.add(bad)
    full = FeatureMemory(5, 3)
    full.add(rows(1, 2, 3, 4, 5))
    for state in (full.state_dict(), {"rows": torch.zeros(2, 2, 3), "pointer": 1}):
        with pytest.raises(ValueError, match="another memory"):
            memory.load_state_dict(state)
    assert len(memory) == 0
