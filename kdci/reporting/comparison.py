"""Vanilla against KDCI: means, t-intervals and paired differences. Torch-free.

A replicate is one (pool seed, student seed). Vanilla and KDCI share all of its randomness, so
they are compared replicate by replicate: the paired difference is the result, not the
difference of two means with an error each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kdci.catalog import CONTROL_NAMES
from kdci.reporting.results import Key, Measure, Part, Row, measure_of

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates.

    Attributes:
        mean: Arithmetic mean.
        interval: Two-sided 95 % t-interval of the mean; null when n is 1.
        n: Number of replicates.
    """

    mean: float
    interval: tuple[float, float] | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


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

    @property
    def is_control(self) -> bool:
        """Whether this is no method, but what methods are measured against."""
        return self.method in CONTROL_NAMES

    @property
    def kdci(self) -> Estimate | None:
        """KDCI's deployed prediction."""
        return self.compensated if self.deploy == "compensated" else self.backbone

    @property
    def difference(self) -> Estimate | None:
        """Paired difference of the deployed prediction."""
        compensated = self.deploy == "compensated"
        return self.compensated_difference if compensated else self.backbone_difference


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and 95 % t-interval of independent ``values``; null if there are none."""
    if not values:
        return None
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, n)
    # The quantile of Student's t; scipy.stats would do, but takes a second longer to load.
    from scipy.special import stdtrit

    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    half_width = quantile * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, (mean - half_width, mean + half_width), n)


def differences(rows: Iterable[Row], measure: Measure, part: Part) -> list[float]:
    """Return KDCI minus vanilla in points, for each replicate that has both."""
    by_variant: dict[str, dict[tuple[int, int], Row]] = {"vanilla": {}, "kdci": {}}
    for row in rows:
        by_variant.setdefault(row.variant, {})[row.replicate] = row
    found = []
    for replicate, kdci in sorted(by_variant["kdci"].items()):
        vanilla = by_variant["vanilla"].get(replicate)
        before = vanilla.value(measure, "backbone") if vanilla else None
        after = kdci.value(measure, part)
        if before is not None and after is not None:
            found.append(after - before)
    return found


def compare(rows: Sequence[Row], keys: Iterable[Key] | None = None) -> list[Comparison]:
    """Compare vanilla and KDCI for each teacher, student and method.

    Args:
        rows: Results of any number of experiments' cells.
        keys: Which comparisons to make, run or not; those of the rows if not given.
    """
    measure = measure_of(rows)
    wanted = dict.fromkeys(row.key for row in rows) if keys is None else dict.fromkeys(keys)
    return [_comparison(key, [row for row in rows if row.key == key], measure) for key in wanted]


def _comparison(key: Key, rows: list[Row], measure: Measure) -> Comparison:
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
    )


def metrics_tree(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return means as a shallow nested dict, for `dvc metrics show` and `dvc metrics diff`.

    Keys are methods; below `teacher-student` where there are several pairs. Without test
    data each name ends in `_agreement`, so that no agreement passes for an accuracy.
    """
    several = len({(one.teacher, one.student) for one in comparisons}) > 1
    tree: dict[str, Any] = {}
    for one in comparisons:
        ending = "" if one.measure == "accuracy" else "_agreement"
        estimates = {
            "vanilla": one.vanilla,
            "kdci": one.kdci,
            "kdci_backbone": one.backbone,
            "kdci_compensated": one.compensated,
            "difference": one.difference,
        }
        numbers = {name + ending: known.mean for name, known in estimates.items() if known}
        if numbers:
            branch = tree.setdefault(f"{one.teacher}-{one.student}", {}) if several else tree
            branch[one.method] = numbers
    return tree
