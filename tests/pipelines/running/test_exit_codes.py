"""Of several failures, the exit code tells the one that a user has to look at first."""

from __future__ import annotations

import pytest

from pipelines.running.exit_codes import gravest


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([], 0),
        ([2], 2),
        ([6, 3], 3),  # a damaged file is worse than a busy workspace
        ([4, 5, 2], 5),
        ([6, 2], 2),
        ([-9, 255], 1),
        ([255, 6], 6),
    ],
)
def test_gravest(codes: list[int], code: int) -> None:
    assert gravest(codes) == gravest(reversed(codes)) == code
