"""Paired differences, and how sure they are: intervals, tests, several methods at once.

A replicate is one (pool seed, student seed). All arms share its pool, initial student and
batches, so an arm is compared with vanilla replicate by replicate: the paired difference is the
result, not the difference of two means with an error each. Torch-free.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdci.reporting.results import Part, Quantity, Replicate, Row

if TYPE_CHECKING:  # `kdci show` starts without numpy
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
NO_SPREAD = 1e-9
"""What is left of equal values by rounding: below it a standard deviation is none."""


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
class Discordant:
    """Images that only one of two students got right, and what McNemar's test makes of them.

    Attributes:
        lost: How many only the first (vanilla) got right; b.
        gained: How many only the second got right; c.
        p: Of the exact two-sided test.
    """

    lost: int
    gained: int
    p: float


def estimate(values: Iterable[float]) -> Estimate | None:
    """Return mean and 95 % t-interval of independent ``values``; null if there are none."""
    known = list(values)
    if not known:
        return None
    mean, n = statistics.fmean(known), len(known)
    if n == 1:
        return Estimate(mean, None, n)
    # The quantile of Student's t; scipy.stats would do, but takes a second longer to load.
    from scipy.special import stdtrit

    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    half_width = quantile * statistics.stdev(known) / math.sqrt(n)
    return Estimate(mean, (mean - half_width, mean + half_width), n)


def paired_t_test(differences: Sequence[float]) -> float | None:
    """Return p of the two-sided paired Student's t-test that the mean difference is 0.

    Null where the test says nothing: fewer than two differences, or all the same.
    """
    if len(differences) < 2:
        return None
    deviation = statistics.stdev(differences)
    if deviation < NO_SPREAD:
        return None
    from scipy.special import stdtr

    n = len(differences)
    t = statistics.fmean(differences) / (deviation / math.sqrt(n))
    return 2 * float(stdtr(n - 1, -abs(t)))


def paired_differences(
    rows: Iterable[Row], quantity: Quantity, *, arm: str, part: Part
) -> dict[Replicate, float]:
    """Return an arm's number minus vanilla's, for each replicate that has both.

    Args:
        rows: Those of one teacher, student and method.
        quantity: What is compared.
        arm: Of `kdci.deconfounding.arms`.
        part: The arm's prediction; vanilla has only its backbone.

    Raises:
        ValueError: The rows have several budgets, which would be set against each other.
    """
    known = list(rows)
    if len({row.budget for row in known}) > 1:
        raise ValueError("rows of several budgets have no paired differences")
    before = by_replicate((row for row in known if row.variant == "vanilla"), quantity, "backbone")
    after = by_replicate((row for row in known if row.variant == arm), quantity, part)
    return minus(after, before)


def by_replicate(rows: Iterable[Row], quantity: Quantity, part: Part) -> dict[Replicate, float]:
    """Return a number of each row that knows it, by replicate and in its order."""
    found = {row.replicate: row.value(quantity, part) for row in rows}
    return {key: value for key, value in sorted(found.items()) if value is not None}


def minus(
    after: Mapping[Replicate, float], before: Mapping[Replicate, float]
) -> dict[Replicate, float]:
    """Return the differences of the replicates that both have."""
    return {key: value - before[key] for key, value in after.items() if key in before}


def pooled_differences(
    of_methods: Sequence[Mapping[Replicate, float]],
) -> dict[Replicate, float]:
    """Average paired differences over methods, within each replicate that all of them have.

    The methods of a replicate share its student seed, so they are no independent samples: the
    replicates are, and an interval goes over these averages.
    """
    if not of_methods:
        return {}
    shared = set.intersection(*(set(one) for one in of_methods))
    return {key: statistics.fmean(one[key] for one in of_methods) for key in sorted(shared)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values of one family of comparisons (Holm, 1979); null stays, and counts for none.

    The i-th smallest of m is multiplied by m - i + 1, and never falls below a smaller one's.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def mcnemar(
    expected: NDArray[np.int16], first: NDArray[np.int16], second: NDArray[np.int16]
) -> Discordant:
    """Compare two students on the same images by McNemar's exact test.

    Images that both get right or both get wrong say nothing. Of the b + c others each is as
    likely to be the first's as the second's if the two are equally good, so the smaller count
    is binomial (McNemar, 1947). It is about these two students on these images: another seed is
    another student.

    Args:
        expected: True classes, (M,).
        first: Classes that the first student predicts, (M,).
        second: Those of the second, (M,).
    """
    from scipy.special import bdtr

    first_right, second_right = first == expected, second == expected
    lost = int((first_right & ~second_right).sum())
    gained = int((second_right & ~first_right).sum())
    p = min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5))) if lost + gained else 1.0
    return Discordant(lost, gained, p)
