"""Every arm against vanilla: by method, over all methods, and on pools with a known shift.

Torch-free. Which arms there are is `kdci.deconfounding.arms`' business; rows name theirs as
`variant`. KDCI against vanilla is what a report opens with, so it is compared in more detail.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdci.deconfounding.arms import ARMS, BASE_ARMS
from kdci.reporting.results import Group, Key, Measure, Part, Replicate, Row, grouped, measure_of
from kdci.reporting.statistics import (
    Estimate,
    by_replicate,
    estimate,
    holm,
    minus,
    paired_differences,
    paired_t_test,
    pooled_differences,
)
from kdci.substitution.registry import control_names

BALANCED = "balanced"
"""The known shift that is none: what the others cost is measured against it."""


@dataclass(frozen=True)
class ArmResult:
    """An arm against vanilla, of one teacher and student; null where nothing was run.

    Attributes:
        group: The pair, and the budget of all its students.
        method: A method or a known shift; null: over all methods.
        measure: What the numbers are, `accuracy` or `agreement`.
        deploy: Which prediction is deployed.
        backbone: The arm's students alone; null over all methods.
        compensated: With their compensation module; null where the arm has none.
        paired: Deployed prediction minus vanilla in points, by replicate.
        p: Of the two-sided paired t-test.
        adjusted_p: The same, adjusted for all comparisons of its family (Holm).
        num_methods: How many methods it is a mean over.
    """

    group: Group
    method: str | None
    arm: str
    measure: Measure
    deploy: Part
    backbone: Estimate | None
    compensated: Estimate | None
    paired: Mapping[Replicate, float]
    p: float | None
    adjusted_p: float | None = None
    num_methods: int = 1

    @property
    def mean(self) -> Estimate | None:
        """The deployed prediction."""
        return self.compensated if self.deploy == "compensated" else self.backbone

    @property
    def difference(self) -> Estimate | None:
        """Paired difference of the deployed prediction."""
        return estimate(self.paired.values())


@dataclass(frozen=True)
class ShiftResult:
    """One known shift: what it costs the plain method, and what each arm gives back.

    Attributes:
        group: The pair, and the budget of all its students.
        vanilla: The plain method on this pool.
        cost: Paired, vanilla here minus vanilla on the balanced pool; null: there is none.
        arms: Every arm but vanilla.
    """

    group: Group
    shift: str
    vanilla: Estimate | None
    cost: Estimate | None
    arms: Sequence[ArmResult]


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
        **vars(_arm_result(Group(teacher, student, budget), method, rows, "kdci", measure)),
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


def has_further_arms(rows: Iterable[Row]) -> bool:
    """Return whether anything was run beside vanilla and KDCI."""
    return any(row.variant not in BASE_ARMS for row in rows)


def arms_of(rows: Iterable[Row]) -> list[str]:
    """Return the arms that were run, but vanilla, in the order of `kdci.deconfounding.arms`."""
    run = {row.variant for row in rows} - {"vanilla"}
    return [arm for arm in ARMS if arm in run]


def compare_arms(
    rows: Sequence[Row], measure: Measure, *, over_methods: bool = True
) -> list[ArmResult]:
    """Compare each arm with vanilla on each pool, and over all methods of a pair at the end.

    Args:
        rows: Of any number of pairs and budgets, each apart; controls have no arms.
        measure: What is compared.
        over_methods: Whether to add each arm's mean over all methods where there are several.
    """
    rows = [row for row in rows if row.method not in control_names()]
    results = []
    for group, of_group in grouped(rows, lambda row: row.group).items():
        arms = arms_of(of_group)
        methods = grouped(of_group, lambda row: row.method)
        single = [
            _arm_result(group, method, of_method, arm, measure)
            for method, of_method in methods.items()
            for arm in arms
        ]
        results += _adjusted(single)
        if over_methods and len(methods) > 1:
            pooled = [_over_methods([one for one in single if one.arm == arm]) for arm in arms]
            results += _adjusted(pooled)
    return results


def _arm_result(
    group: Group, method: str, rows: Sequence[Row], arm: str, measure: Measure
) -> ArmResult:
    """Compare an arm with vanilla on one pool's method; ``rows`` are all of these."""
    own = [row for row in rows if row.variant == arm]
    deploy: Part = own[0].deployed if own else "backbone"
    paired = paired_differences(rows, measure, arm=arm, part=deploy)
    return ArmResult(
        group,
        method,
        arm=arm,
        measure=measure,
        deploy=deploy,
        backbone=estimate(by_replicate(own, measure, "backbone").values()),
        compensated=estimate(by_replicate(own, measure, "compensated").values()),
        paired=paired,
        p=paired_t_test(list(paired.values())),
    )


def _over_methods(results: Sequence[ArmResult]) -> ArmResult:
    """Pool an arm over the methods that it was run on."""
    run = [one for one in results if one.paired]
    paired = pooled_differences([one.paired for one in run])
    return replace(
        results[0],
        method=None,
        deploy=run[0].deploy if run else "backbone",
        backbone=None,
        compensated=None,
        paired=paired,
        p=paired_t_test(list(paired.values())),
        num_methods=len(run),
    )


def _adjusted(results: Sequence[ArmResult]) -> list[ArmResult]:
    adjusted = holm([one.p for one in results])
    return [replace(one, adjusted_p=p) for one, p in zip(results, adjusted, strict=True)]


def compare_shifts(rows: Sequence[Row], measure: Measure) -> list[ShiftResult]:
    """Return what each known shift costs the plain method, and each arm's gain there.

    Args:
        rows: Those on pools with a known shift, of any number of pairs.
        measure: What is compared.
    """
    results = compare_arms(rows, measure, over_methods=False)
    found = []
    for group, of_group in grouped(rows, lambda row: row.group).items():
        plain = grouped((r for r in of_group if r.variant == "vanilla"), lambda row: row.method)
        for shift in dict.fromkeys(row.method for row in of_group):
            here, balanced = (
                by_replicate(plain.get(name, ()), measure, "backbone") for name in (shift, BALANCED)
            )
            cost = None if shift == BALANCED else estimate(minus(here, balanced).values())
            arms = [one for one in results if (one.group, one.method) == (group, shift)]
            found.append(ShiftResult(group, shift, estimate(here.values()), cost, arms))
    return found
