from __future__ import annotations

import pytest

from kdci.training.schedules import snapshot_steps


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((2, 2, 2), [2, 4]),
        ((10, 3, 1), [30]),
        ((7, 1, 2), [4, 7]),
        ((2, 120, 5), [48, 96, 144, 192, 240]),  # within epochs: there are too few of them
        ((4, 5, 8), [2, 5, 8, 10, 12, 15, 18, 20]),
        ((1, 2, 5), [1, 2]),
    ],
)
def test_snapshot_steps_are_evenly_spread_the_last_one_in(
    arguments: tuple[int, int, int], steps: list[int]
) -> None:
    assert snapshot_steps(*arguments) == steps
