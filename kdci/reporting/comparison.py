"""Vanilla against KDCI for each method: means, paired differences, times. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdci.reporting.arm_comparison import ArmResult, arm_result
from kdci.reporting.results import Group, Key, Measure, Part, Replicate, Row, measure_of
from kdci.reporting.statistics import Estimate, by_replicate, estimate, paired_differences
from kdci.substitution.registry import control_names


@dataclass(frozen=True, kw_only=True)
class Comparison(ArmResult):
    """KDCI against vanilla for one teacher, student and method; null where nothing was run.

    Attributes:
        vanilla: Over the vanilla replicates.
        gains: Each of KDCI's predictions minus vanilla in points, by replicate.
        vanilla_seconds: Mean distillation time of a vanilla student.
        kdci_seconds: Mean distillation time of a KDCI student.
    """

    method: str
    vanilla: Estimate | None
    gains: Mapping[Part, Mapping[Replicate, float]]
    vanilla_seconds: float | None
    kdci_seconds: float | None

    @property
    def is_control(self) -> bool:
        """Whether this is no method, but what methods are measured against."""
        return self.method in control_names()


def compare(rows: Sequence[Row], keys: Iterable[Key] | None = None) -> list[Comparison]:
    """Compare vanilla and KDCI for each teacher, student and method, and each of their budgets.

    Args:
        rows: Results of any number of experiments' cells.
        keys: Which comparisons to make, run or not; those of the rows if not given.
    """
    measure = measure_of(rows)
    wanted = dict.fromkeys(row.key for row in rows) if keys is None else dict.fromkeys(keys)
    return [
        _comparison(key, budget, [row for row in rows if row.key == key], measure)
        for key in wanted
        for budget in _budgets(rows, key)
    ]


def _budgets(rows: Sequence[Row], key: Key) -> list[float]:
    """Return the budgets of a comparison; where it was not run, that of what stands beside it."""
    own = dict.fromkeys(row.budget for row in rows if row.key == key)
    beside = [row.budget for row in rows if row.key[:2] == key[:2]] or [row.budget for row in rows]
    return list(own) or beside[:1] or [1.0]


def _comparison(key: Key, budget: float, rows: list[Row], measure: Measure) -> Comparison:
    teacher, student, method = key
    rows = [row for row in rows if row.budget == budget]
    vanilla = [row for row in rows if row.variant == "vanilla"]

    def seconds(variant: str) -> float | None:
        timed = [row.seconds for row in rows if row.variant == variant]
        known = [value for value in timed if value is not None]
        return statistics.fmean(known) if known else None

    return Comparison(
        **vars(arm_result(Group(teacher, student, budget), method, rows, "kdci", measure)),
        vanilla=estimate(by_replicate(vanilla, measure, "backbone").values()),
        gains={
            part: paired_differences(rows, measure, arm="kdci", part=part)
            for part in ("backbone", "compensated")
        },
        vanilla_seconds=seconds("vanilla"),
        kdci_seconds=seconds("kdci"),
    )


def metrics_tree(
    comparisons: Sequence[Comparison], arms: Sequence[ArmResult] = ()
) -> dict[str, Any]:
    """Return means as a shallow nested dict, for `dvc metrics show` and `dvc metrics diff`.

    Keys are methods and known shifts; below `teacher-student` where there are several pairs. Where
    there are several budgets, a key names its own: `fast@0.1`.
    Without test data each name ends in `_agreement`, so that no agreement passes for an accuracy.

    Args:
        comparisons: Vanilla against KDCI.
        arms: What the further arms gain; several methods at once are `all_methods`.
    """
    several = len({one.group[:2] for one in comparisons}) > 1
    budgets = {one.group.budget for one in comparisons}
    tree: dict[str, Any] = {}

    def add(one: ArmResult, name: str, estimates: dict[str, Estimate | None]) -> None:
        ending = "" if one.measure == "accuracy" else "_agreement"
        teacher, student, budget = one.group
        numbers = {key + ending: known.mean for key, known in estimates.items() if known}
        if numbers:
            branch = tree.setdefault(f"{teacher}-{student}", {}) if several else tree
            name += f"@{budget:g}" if len(budgets) > 1 else ""
            branch.setdefault(name, {}).update(numbers)

    for one in comparisons:
        estimates = {
            "vanilla": one.vanilla,
            "kdci": one.mean,
            "kdci_backbone": one.backbone,
            "kdci_compensated": one.compensated,
            "difference": one.difference,
        }
        add(one, one.method, estimates)
    for result in arms:
        if result.method is None:
            add(result, "all_methods", {f"difference_{result.arm}": result.difference})
        elif result.arm != "kdci":
            gained = {result.arm: result.mean, f"difference_{result.arm}": result.difference}
            add(result, result.method, gained)
    return tree
