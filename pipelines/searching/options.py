"""What a search can be asked for, and what of it can be no answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdci.config.block import NAME_PATTERN
from kdci.errors import UserError
from pipelines.running.limits import require_at_least

SCHEDULERS = ("asha", "none")
SEARCHERS = ("tpe", "random")


@dataclass(frozen=True)
class SearchOptions:
    """What a search is asked for; `kdci sweep --help` tells of each. None: the grid's first.

    Attributes:
        keys: Further ``KEY=DISTRIBUTION`` beside those of the file ``space``.
        num_trials: Distinct trials in all, those of earlier runs included.
        limit: Trials at a time; None: what the resources carry.
        cpus: Cores of a trial; None: the params' threads.
        gpus: GPUs of a trial, or a share of one; None: one where there are any.
        max_failures: How often a trial whose worker or stage was killed is started again.
    """

    space: Path | None = None
    keys: Sequence[str] = ()
    num_trials: int = 16
    name: str | None = None
    criterion: str = "agreement"
    scheduler: str = "asha"
    searcher: str = "tpe"
    seed: int = 0
    grace: int = 1
    reduction: int = 2
    method: str | None = None
    variant: str | None = None
    teacher: str | None = None
    student: str | None = None
    pool_seeds: Sequence[int] | None = None
    seeds: Sequence[int] | None = None
    limit: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    max_failures: int = 3


def require_options(options: SearchOptions) -> None:
    """Check what can be checked without the project.

    Raises:
        UserError: A value is out of its range.
    """
    require_at_least(
        {
            "--trials": (options.num_trials, 1),
            "--grace": (options.grace, 1),
            "--max-concurrent": (options.limit, 1),
            "--max-failures": (options.max_failures, 0),
            "--reduction": (options.reduction, 2),
        }
    )
    choices = {
        "--scheduler": (options.scheduler, SCHEDULERS),
        "--searcher": (options.searcher, SEARCHERS),
    }
    for option, (value, allowed) in choices.items():
        if value not in allowed:
            raise UserError(option, f"unknown value {value!r}", f"one of {', '.join(allowed)}")
    if options.name is not None and not re.match(NAME_PATTERN, options.name):
        raise UserError("--name", f"{options.name!r} is no name", "letters, digits, . _ -")
