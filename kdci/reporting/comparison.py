"""Vanilla against KDCI for each method: means, paired differences, times. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdci.reporting.arm_comparison import ArmResult
from kdci.reporting.results import Group, Key, Measure, Part, Row, measure_of
from kdci.reporting.statistics import Estimate, estimate, paired_differences
from kdci.substitution.registry import control_names


@dataclass(frozen=True)
class Comparison:
    """Vanilla against KDCI for one teacher, student and method; null where nothing was run.

    Attributes:
        measure: What the numbers are, `accuracy` or `agreement`.
        deploy: Which KDCI prediction is deployed.
        vanilla: Over the vanilla replicates.
        backbone: KDCI's students alone.
        compensated: KDCI's students with their compensation module.
        backbone_difference: Paired, KDCI's backbone minus vanilla, in points.
        compensated_difference: Paired, compensated minus vanilla, in points.
        vanilla_seconds: Mean distillation time of a vanilla student.
        kdci_seconds: Mean distillation time of a KDCI student.
        budget: Of all its students.
    """

    teacher: str
    student: str
    method: str
    measure: Measure
    deploy: str
    vanilla: Estimate | None
    backbone: Estimate | None
    compensated: Estimate | None
    backbone_difference: Estimate | None
    compensated_difference: Estimate | None
    vanilla_seconds: float | None
    kdci_seconds: float | None
    budget: float = 1.0

    @property
    def group(self) -> Group:
        """Teacher, student and budget."""
        return (self.teacher, self.student, self.budget)

    def covers(self, row: Row) -> bool:
        """Tell whether a row is one of those that are compared here."""
        return row.key == (self.teacher, self.student, self.method) and row.budget == self.budget

    @property
    def is_control(self) -> bool:
        """Whether this is no method, but what methods are measured against."""
        return self.method in control_names()

    @property
    def kdci(self) -> Estimate | None:
        """KDCI's deployed prediction."""
        return self.compensated if self.deploy == "compensated" else self.backbone

    @property
    def difference(self) -> Estimate | None:
        """Paired difference of the deployed prediction."""
        compensated = self.deploy == "compensated"
        return self.compensated_difference if compensated else self.backbone_difference


def differences(rows: Iterable[Row], measure: Measure, part: Part) -> list[float]:
    """Return KDCI minus vanilla in points, for each replicate that has both."""
    return list(paired_differences(rows, measure, arm="kdci", part=part).values())


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
    rows = [row for row in rows if row.budget == budget]
    vanilla = [row for row in rows if row.variant == "vanilla"]
    kdci = [row for row in rows if row.variant == "kdci"]

    def over(group: list[Row], part: Part) -> Estimate | None:
        values = (row.value(measure, part) for row in group)
        return estimate([value for value in values if value is not None])

    def seconds(group: list[Row]) -> float | None:
        known = [row.seconds for row in group if row.seconds is not None]
        return statistics.fmean(known) if known else None

    return Comparison(
        *key,
        measure=measure,
        deploy=kdci[0].deploy if kdci else "backbone",
        vanilla=over(vanilla, "backbone"),
        backbone=over(kdci, "backbone"),
        compensated=over(kdci, "compensated"),
        backbone_difference=estimate(differences(rows, measure, "backbone")),
        compensated_difference=estimate(differences(rows, measure, "compensated")),
        vanilla_seconds=seconds(vanilla),
        kdci_seconds=seconds(kdci),
        budget=budget,
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
    several = len({(one.teacher, one.student) for one in comparisons}) > 1
    budgets = {one.budget for one in comparisons}
    tree: dict[str, Any] = {}

    def add(one: Comparison | ArmResult, name: str, estimates: dict[str, Estimate | None]) -> None:
        ending = "" if one.measure == "accuracy" else "_agreement"
        numbers = {key + ending: known.mean for key, known in estimates.items() if known}
        if numbers:
            branch = tree.setdefault(f"{one.teacher}-{one.student}", {}) if several else tree
            name += f"@{one.budget:g}" if len(budgets) > 1 else ""
            branch.setdefault(name, {}).update(numbers)

    for one in comparisons:
        estimates = {
            "vanilla": one.vanilla,
            "kdci": one.kdci,
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
