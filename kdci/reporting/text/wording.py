"""How numbers and verdicts are worded, in tables, report and figures alike. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdci.reporting.comparison import Comparison
from kdci.reporting.results import Group
from kdci.reporting.statistics import NO_SPREAD, Estimate
from kdci.substitution.registry import names, title_of

MEASURE_NOTES = {
    "accuracy": "accuracy on the test split, percent, last epoch",
    "agreement": "no test data: agreement with the teacher on held-out substitutes, percent",
}
ARMS_NOTE = (
    "Arms: each arm's deployed prediction against vanilla, paired by replicate (pool seed and "
    "student seed), in points with a 95 % t-interval. p: two-sided paired Student's t-test over "
    "replicates, none for n = 1; p (Holm): adjusted over all lines of single methods, and apart "
    "from them over those of all methods. All methods: differences are averaged over methods "
    "within each replicate first, for the methods of a replicate share its seed."
)
SHIFTS_NOTE = (
    "Known shifts: a line is a pool with that shift built in. Below an arm: its paired difference "
    "to vanilla on the same pool, deployed prediction, in points with a 95 % t-interval."
)
COST_NOTE = (
    "vanilla - balanced: what the shift costs the plain method, paired with its student of the "
    "same seeds on the balanced pool."
)
MCNEMAR_NOTE = (
    "McNemar's exact test compares a student with its vanilla twin on the same test images. b: "
    "images that only vanilla gets right; c: that only the other does (deployed prediction); p: "
    "two-sided, binomial over the b + c. It is about these two students: whether an arm is better "
    "shows over replicates, in the paired differences. Not corrected for the number of tests."
)
POOL_SHIFT_NOTE = (
    "All by the teacher's predictions. Total variation: of the class proportions from uniform; "
    "entropy: of the class proportions. Teacher-FID: squared Frechet distance between Gaussians "
    "fitted to the teacher's features of the pool and of the test images. It is no FID, whose "
    "features are an Inception network's: it compares pools of one teacher, never those of two, "
    "and never with a published FID. It is biased upwards for few images: only pools of about the "
    "same size compare."
)
STUDENT_SHIFT_NOTE = (
    "Of the deployed prediction on the test split, mean ± half of the 95 % t-interval; lower is "
    "better. Marginal bias: total variation of the predicted class proportions from the true ones, "
    "in percent. Calibration error: expected calibration error, 15 bins, in percent. Change: "
    "paired with vanilla by replicate, in points with a 95 % t-interval."
)
BUDGET_NOTE = (
    "Budget: factor on the steps of pools and students that the preset's blocks give. Numbers of "
    "different budgets are never averaged, nor set against each other."
)
NOT_RUN = "not run"
UNKNOWN = "-"


def budget_text(budget: float) -> str:
    """Return ", budget 0.1" to go on with after a name; nothing for the whole budget."""
    return "" if budget == 1 else f", budget {budget:g}"


def pair_text(group: Group) -> str:
    """Return "a to b", with the budget where it is not the whole."""
    teacher, student, budget = group
    return f"{teacher} to {student}{budget_text(budget)}"


def hardware(runtime: Mapping[str, Any]) -> str:
    """Return what a card's ``runtime`` says that something ran on."""
    more = runtime.get("device_name") or runtime.get("machine")
    return f"{runtime['device']} ({more})" if more else str(runtime["device"])


def is_shift(method: str) -> bool:
    """Return whether a row's `method` is a pool with a known shift: no method has its name."""
    return method not in names()


def number(value: float | None, decimals: int = 1) -> str:
    """Return a number with a fixed count of decimals, never as "-0.0"."""
    if value is None:
        return UNKNOWN
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def signed(value: float, decimals: int = 1) -> str:
    """Return a difference in points with its sign; 0.0 has none."""
    text = number(value, decimals)
    return f"+{text}" if float(text) > 0 else text


def mean_text(estimate: Estimate | None, decimals: int = 1) -> str:
    """Return "98.1 ± 0.4": mean and half the 95 % interval; "(n = 1)" where there is none."""
    if estimate is None:
        return NOT_RUN
    mean = number(estimate.mean, decimals)
    if estimate.half_width is None:
        return f"{mean} (n = 1)"
    return f"{mean} ± {number(estimate.half_width, decimals)}"


def difference_text(estimate: Estimate | None, decimals: int = 1) -> str:
    """Return "+0.3 (-0.5 to 1.1)": a difference with its interval."""
    if estimate is None:
        return NOT_RUN
    return f"{signed(estimate.mean, decimals)} ({interval_text(estimate, decimals)})"


def interval_text(estimate: Estimate, decimals: int = 1) -> str:
    """Return "-0.5 to 1.1", or "n = 1" where there is no interval."""
    if estimate.interval is None:
        return "n = 1"
    return " to ".join(_bound(bound, decimals) for bound in estimate.interval)


def certainty_text(estimate: Estimate) -> str:
    """Return "95 % interval -0.5 to 1.1, n = 3", or "n = 1" where there is no interval."""
    interval = interval_text(estimate)
    return f"95 % interval {interval}, n = {estimate.n}" if estimate.interval else interval


def _bound(value: float, decimals: int) -> str:
    """Return a bound so that rounding does not hide on which side of 0 it lies."""
    text = number(value, decimals)
    return text if float(text) != 0 or value == 0 else number(value, max(decimals, 2))


def p_text(p: float | None) -> str:
    """Return "0.034", "<0.001", or "-" where there was nothing to test."""
    if p is None:
        return UNKNOWN
    return "<0.001" if p < 0.001 else number(p, 3)


def verdict(estimate: Estimate | None) -> str:
    """Return what a paired difference shows, and nothing beyond its interval."""
    if estimate is None:
        return NOT_RUN
    if estimate.interval is None:
        return "one replicate, so nothing is shown"
    low, high = estimate.interval
    if high - low < NO_SPREAD:
        return f"the same in all {estimate.n} replicates, so no interval can be given"
    if low > 0:
        return "KDCI is better here"
    if high < 0:
        return "KDCI is worse here"
    return "no difference shown"


def headline(comparison: Comparison) -> str:
    """Return one honest sentence on a method.

    Example: "Fast: KDCI +0.3 points (95 % interval -0.5 to 1.1, n = 3): no difference shown."
    """
    title, paired = title_of(comparison.method), comparison.difference
    if comparison.is_control:
        return f"{title}, a control: {mean_text(comparison.vanilla)}, what a method has to beat."
    if paired is None:
        missing = [
            name
            for name, known in (("vanilla", comparison.vanilla), ("KDCI", comparison.mean))
            if known is None
        ]
        what = " and ".join(missing) + " not run" if missing else "no replicate has both variants"
        return f"{title}: no comparison ({what})."
    points = "points" if comparison.measure == "accuracy" else "points of agreement"
    how_sure = certainty_text(paired)
    return f"{title}: KDCI {signed(paired.mean)} {points} ({how_sure}): {verdict(paired)}."
