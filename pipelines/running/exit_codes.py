"""What the exit code of a stage means: the one table, for every runner and executor.

The codes themselves stand with the errors, in ``kdci.errors``; docs/run.md shows the table.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from enum import Enum

STOPPED = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
"""It was asked to end, and saved its state."""
_FINAL = {1, 2, 3, 5}
"""An unknown end, a mistake, damaged files, numbers: the next attempt would end alike."""
_BY_GRAVITY = (1, 6, 2, 4, 5, 3)
"""An unknown end, somebody else at work, a mistake, the disk, numbers, damaged files."""


class Ending(Enum):
    """How a stage ended."""

    result = "result"
    stopped = "stopped"
    final = "final"
    passing = "passing"
    """The disk, a lock or a kill was in the way: another attempt goes on from the checkpoint."""


def ending(code: int) -> Ending:
    """Return what an exit code means; a negative one tells of the signal that killed it."""
    if code == 0:
        return Ending.result
    if code in STOPPED:
        return Ending.stopped
    return Ending.final if code in _FINAL else Ending.passing


def gravest(codes: Iterable[int]) -> int:
    """Return the exit code that tells most; 0: there is none.

    Args:
        codes: Exit codes of what failed; one that is not of ours, as of a stage that was killed
            or crashed, counts as 1.
    """
    known = [code if code in _BY_GRAVITY else 1 for code in codes]
    return max(known, key=_BY_GRAVITY.index, default=0)
