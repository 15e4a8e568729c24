"""Errors a user can act on, each with the exit code that scripts rely on.

A message is one line: ``<key or path>: <what is wrong> (<how to mend it>)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class KdciError(Exception):
    """Base of all errors that end a command with one line and a known exit code.

    Args:
        subject: The params key or path the error is about.
        what: What is wrong with it.
        fix: How to mend it; may be empty.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, subject: str, what: str, fix: str = "") -> None:
        self.subject = subject
        self.what = what
        self.fix = fix
        super().__init__(f"{subject}: {what}" + (f" ({fix})" if fix else ""))

    def lines(self) -> list[str]:
        """Return the message as stderr lines, one per problem."""
        return [" ".join(f"kdci: error: {self}".split())]


class UserError(KdciError):
    """Params, data or teacher do not fit; nothing was run."""

    exit_code = 2


class CombinedUserError(UserError):
    """Several user errors found in one go."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        self.problems = list(problems)
        first = self.problems[0]
        super().__init__(first.subject, first.what, first.fix)

    def lines(self) -> list[str]:
        """Return one stderr line per problem."""
        return [line for problem in self.problems for line in problem.lines()]


class IntegrityError(KdciError):
    """A file is damaged, was altered, or is of a kind that is never loaded."""

    exit_code = 3


class StorageError(KdciError):
    """The disk is full, or a path can not be read or written."""

    exit_code = 4


class NumericError(KdciError):
    """A loss, weight or statistic is not finite."""

    exit_code = 5


class BusyError(KdciError):
    """Another process is working on the same output."""

    exit_code = 6


class StoppedError(KdciError):
    """A signal asked the stage to stop; its progress is in a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__("stopped", f"by signal {signal_number}", "run it again to continue")

    @property
    def stop_code(self) -> int:
        """Exit code of a process ended by this signal: 130 or 143."""
        return 128 + self.signal_number
