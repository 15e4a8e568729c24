"""Where the project's processes run: the one interface under `kdci run`, `sweep` and `search`.

A call is a module's command in the project folder, as `python -m stages.distill CELL`. An executor
runs it on this machine (``local``), on a Ray cluster or by Slurm; what it prints, how it ends and
how it is stopped is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

Hear = Callable[[str], None]
"""Hears a line of a process's output, without its end."""


@dataclass(frozen=True)
class Call:
    """A module's command.

    Attributes:
        name: What it is for those who follow it: a stage's name in DVC, or a trial.
        module: What `python -m` runs.
        arguments: Of its command line.
        variables: Environment variables that it has beside those of the runner.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


class Job(Protocol):
    """A call at work, or about to be.

    Attributes:
        links: Ids of where it runs, for the journal: ``ray.trial_id``, ``slurm.job_id``, ...
    """

    links: Mapping[str, str]

    def wait(self) -> int:
        """Return its exit code once it has ended and its lines were heard; -N: by signal N."""

    def stop(self) -> None:
        """Have it save its state and end, from any thread; it is killed if it does not."""


class Executor(Protocol):
    """Where calls run.

    Attributes:
        name: `local`, `ray` or `slurm`.
        room: Calls that are at work at a time at most; more wait; None: as many as are asked for.
    """

    name: str
    room: int | None

    def submit(self, call: Call, hear: Hear) -> Job:
        """Start a call, or have it wait for its place; ``hear`` is called in any thread."""
