"""Numbers as a person says them."""

from __future__ import annotations

import pytest

from pipelines.checking.diagnosis.disk import amount
from pipelines.checking.estimating.text import duration


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.44, "0.4 s"),
        (59, "59 s"),
        (130, "2.2 min"),
        (5400, "90 min"),
        (6000, "1.7 h"),
        (360_000, "100 h"),
        (3_600_000, "42 days"),
        (1e8, "1,160 days"),
    ],
)
def test_durations_have_two_digits(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_amounts_are_decimal() -> None:
    assert [amount(n) for n in (200, 1.2e6, 9.04e10, 1.5e12)] == [
        "0 kB",
        "1.2 MB",
        "90 GB",
        "1.5 TB",
    ]
