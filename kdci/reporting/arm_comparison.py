"""Every arm against vanilla: by method, over all methods, and on pools with a known shift.

Torch-free. Which arms there are is `kdci.deconfounding.arms`' business; rows name theirs as
`variant`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kdci.deconfounding.arms import ARMS, BASE_ARMS
from kdci.reporting.results import Group, Measure, Part, Replicate, Row, grouped
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
            arm_result(group, method, of_method, arm, measure)
            for method, of_method in methods.items()
            for arm in arms
        ]
        results += _adjusted(single)
        if over_methods and len(methods) > 1:
            pooled = [_over_methods([one for one in single if one.arm == arm]) for arm in arms]
            results += _adjusted(pooled)
    return results


def arm_result(
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
