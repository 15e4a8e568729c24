from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kdci.training.schedules import learning_rate_factor, scale_learning_rates


@pytest.mark.parametrize(
    ("step", "final_factor", "expected"),
    [
        (0, 0.0, 1.0),
        (25, 0.0, (1 + math.sqrt(0.5)) / 2),
        (50, 0.0, 0.5),
        (75, 0.0, (1 - math.sqrt(0.5)) / 2),
        (100, 0.0, 0.0),
        (0, 0.2, 1.0),
        (50, 0.2, 0.6),
        (100, 0.2, 0.2),
    ],
)
def test_cosine_values_by_hand(step: int, final_factor: float, expected: float) -> None:
    got = learning_rate_factor("cosine", step=step, num_steps=100, final_factor=final_factor)
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_steps", [10, 77_350])
def test_milestones_divide_by_ten_at_40_and_80_percent(num_steps: int) -> None:
    def at(step: int) -> float:
        return learning_rate_factor("milestones", step=step, num_steps=num_steps)

    first, second = num_steps * 4 // 10, num_steps * 8 // 10
    assert [at(0), at(first - 1)] == [1.0, 1.0]
    assert [at(first), at(second - 1)] == pytest.approx([0.1, 0.1])
    assert [at(second), at(num_steps - 1)] == pytest.approx([0.01, 0.01])


def test_constant_stays() -> None:
    assert {learning_rate_factor("constant", step=s, num_steps=9) for s in range(9)} == {1.0}


def test_each_group_is_scaled_from_its_own_initial_rate() -> None:
    one, two = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": [one]}, {"params": [two], "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for factor in (0.5, 0.25):  # always of the initial rate, never of the one before
        scale_learning_rates(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05]


def test_initial_rates_survive_the_optimiser_state() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    before = torch.optim.SGD([weight], lr=1.0)
    scale_learning_rates(before, 0.5)
    after = torch.optim.SGD([weight], lr=1.0)
    after.load_state_dict(before.state_dict())
    scale_learning_rates(after, 0.1)
    assert after.param_groups[0]["lr"] == 0.1
