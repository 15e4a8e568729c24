"""The tables of arms and of known shifts, for a terminal and for Markdown. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.reporting.arm_comparison import BALANCED, ArmResult, ShiftResult
from kdci.reporting.statistics import Estimate
from kdci.reporting.text.wording import (
    UNKNOWN,
    difference_text,
    mean_text,
    p_text,
)
from kdci.substitution.registry import title_of


def arm_cells(results: Sequence[ArmResult]) -> list[list[str]]:
    """Return head and lines: one a method and arm, then one an arm over all methods.

    Args:
        results: Those of one teacher-student pair.
    """
    num_methods = len({one.method for one in results if one.method is not None})
    head = ["method", "arm", "backbone", "compensated", "paired difference", "p", "p (Holm)", "n"]
    return [head, *(_arm_line(one, num_methods) for one in results)]


def _arm_line(one: ArmResult, num_methods: int) -> list[str]:
    backbone = compensated = UNKNOWN
    if one.method is not None:
        backbone = mean_text(one.backbone)
        if ARMS[one.arm].compensated:
            compensated = mean_text(one.compensated)
    paired = one.difference
    return [
        where(one, num_methods),
        arm_title(one.arm),
        backbone,
        compensated,
        difference_text(paired),
        p_text(one.p),
        p_text(one.adjusted_p),
        str(paired.n) if paired else UNKNOWN,
    ]


def where(one: ArmResult, num_methods: int) -> str:
    """Return what a result is about: a method's or a shift's name, or how many methods."""
    if one.method is not None:
        return title_of(one.method)
    all_run = one.num_methods == num_methods
    return "all methods" if all_run else f"{one.num_methods} of {num_methods} methods"


def shift_cells(results: Sequence[ShiftResult]) -> list[list[str]]:
    """Return head and lines: one a known shift, with a column for each arm's paired gain.

    Args:
        results: Those of one teacher-student pair.
    """
    against = any(one.shift == BALANCED for one in results)
    arms = [one.arm for one in results[0].arms]
    cost = [f"vanilla - {BALANCED}"] if against else []
    lines = [["shift", "vanilla", *cost, *map(arm_title, arms), "n"]]
    for one in results:
        gains = [arm.difference for arm in one.arms]
        here = difference_text(one.cost) if one.shift != BALANCED else UNKNOWN
        costs = [here] if against else []
        words = [mean_text(one.vanilla), *costs, *(difference_text(gain) for gain in gains)]
        lines.append([one.shift, *words, _counts([one.vanilla, *gains])])
    return lines


def _counts(estimates: Iterable[Estimate | None]) -> str:
    """Return the number of replicates; "2 to 3" where it is not the same for all."""
    counts = sorted({known.n for known in estimates if known})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else UNKNOWN
