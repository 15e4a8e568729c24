"""The heap keeps what a stable sort of everything would put first."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdci.data.open_world.top_scores import TopScores
from kdci.store.checkpoints import pack

# Few values, so that most are equal to another; both zeros, which are.
VALUES = st.sampled_from([-2.0, -0.0, 0.0, 0.5, 1.0, 1e30])
SCORES = st.lists(st.one_of(VALUES, st.floats(-4, 4, width=32)), min_size=1, max_size=60)


def sorted_choice(scores: list[float], keep: str, size: int) -> list[int]:
    order = torch.tensor(scores).argsort(descending=keep == "highest", stable=True)
    return sorted(order[:size].tolist())


@given(SCORES, st.integers(1, 70), st.integers(1, 9), st.sampled_from(["lowest", "highest"]))
def test_keeps_what_a_stable_sort_puts_first(
    scores: list[float], size: int, batch: int, keep: Literal["lowest", "highest"]
) -> None:
    top = TopScores(size, keep=keep)
    for start in range(0, len(scores), batch):
        part = scores[start : start + batch]
        top.add(torch.tensor(part), range(start, start + len(part)))
        assert len(top) <= size
        resumed = TopScores(size, keep=keep)
        resumed.load_state_dict(top.state_dict())
        top = resumed
    positions, kept = top.in_order()
    assert positions == sorted_choice(scores, keep, size)
    assert torch.equal(torch.tensor(kept), torch.tensor(scores)[positions])


@pytest.mark.parametrize("keep", ["lowest", "highest"])
def test_positions_may_have_gaps_and_a_state_may_be_stored(
    keep: Literal["lowest", "highest"],
) -> None:
    top = TopScores(2, keep=keep)
    top.add(torch.tensor([3.0, 1.0, 2.0]), [4, 10, 2**40])
    assert top.in_order()[0] == ([10, 2**40] if keep == "lowest" else [4, 2**40])
    tensors, _ = pack(top.state_dict())
    assert sorted(tensor.dtype.itemsize for tensor in tensors.values()) == [8, 8]
    assert math.prod(len(tensor) for tensor in tensors.values()) == 4
