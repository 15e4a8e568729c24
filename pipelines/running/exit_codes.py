"""Which exit code a command ends with when several stages failed."""

from __future__ import annotations

from collections.abc import Iterable

_BY_GRAVITY = (1, 6, 2, 4, 5, 3)
"""An unknown end, somebody else at work, a mistake, the disk, numbers, damaged files."""


def gravest(codes: Iterable[int]) -> int:
    """Return the exit code that tells most; 0: there is none.

    Args:
        codes: Exit codes of what failed; one that is not of ours, as of a stage that was killed
            or crashed, counts as 1.
    """
    known = [code if code in _BY_GRAVITY else 1 for code in codes]
    return max(known, key=_BY_GRAVITY.index, default=0)
