"""What `kdci doctor` finds: one line each, and what would put it right by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial


class Level(StrEnum):
    """How grave a finding is."""

    ok = "ok"
    warning = "warning"
    """Worth knowing; nothing fails because of it."""
    problem = "problem"
    """Something fails, or will."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        level: How grave it is.
        what: What was looked at and how it is.
        mend: How to put it right; "": there is nothing to do.
        exit_code: Of a problem: that of `kdci doctor`.
        repair: Puts it right and says what it did; None: that is for a person to decide.
    """

    level: Level
    what: str
    mend: str = ""
    exit_code: int = 2
    repair: Callable[[], str] | None = None

    @property
    def line(self) -> str:
        """The finding as a terminal shows it."""
        mend = f"  ({self.mend})" if self.mend else ""
        return f"{self.level:<7}  {self.what}{mend}"


ok = partial(Finding, Level.ok)
warning = partial(Finding, Level.warning)
problem = partial(Finding, Level.problem)
