"""Seconds of work that is done again and again, and how they grow with the counts in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

LONG_ENOUGH = 0.5
"""Seconds of repeats that are timed, at least one of them."""
LONG_WORK = 5.0
"""Seconds from which on work is not observed a second time."""
MOST_REPEATS = 50
GROWTH = 3
SIGNIFICANT = 1.3
"""Work takes longer with a count if it takes so many times as long at ``GROWTH`` times the count:
noise is not to be drawn out to thousands."""

Seconds = dict[str, float]
"""By what was done."""


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of some work.

    On the CPU no more than its own, of all threads together: others may use this machine too.
    """
    began, computed = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    passed = time.perf_counter() - began
    return passed if device.type == "cuda" else min(passed, time.process_time() - computed)


def usual(
    work: Callable[[], object],
    device: torch.device,
    *,
    most: int | None = None,
    is_warm: bool = False,
) -> float:
    """Return the seconds of work that is repeated, after a first time that prepares kernels.

    Args:
        work: Done until ``LONG_ENOUGH``, the first time not counted.
        device: Where it computes.
        most: How often it can be done; once: that is timed.
        is_warm: Whether such work was done before, and prepared them: the first time counts too.
    """
    if not is_warm and most != 1:
        timed(work, device)
        most = None if most is None else most - 1
    took = [timed(work, device)]
    while sum(took) < LONG_ENOUGH and len(took) not in (most, MOST_REPEATS):
        took.append(timed(work, device))
    return median(took)


@dataclass(frozen=True)
class Line:
    """Seconds as they grow with counts, each of them in proportion.

    Attributes:
        base: At the least counts.
        rates: By count: its least value, and the seconds of one more.
    """

    base: float
    rates: Mapping[str, tuple[int, float]]

    def seconds(self, counts: Mapping[str, int]) -> float:
        """Return the seconds at ``counts``."""
        more = (rate * (counts[name] - least) for name, (least, rate) in self.rates.items())
        return self.base + sum(more)


def draw_lines(
    observe: Callable[[Mapping[str, int]], Seconds],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, Line]:
    """Time several things together as they grow with some counts, one count after the other.

    Args:
        observe: Does them at some counts and returns their seconds.
        least: The counts to begin at.
        most: No count grows above it; nor further than is needed to tell its part.
    """
    base = _undisturbed(observe, least, observe(least))
    rates: dict[str, dict[str, tuple[int, float]]] = {what: {} for what in base}
    for name, first in least.items():
        value, seconds = first, base
        while value < most[name] and not _told(seconds, base):
            value = min(most[name], _next(value, max(seconds.values())))
            seconds = observe({**least, name: value})
        if seconds is not base:
            seconds = _undisturbed(observe, {**least, name: value}, seconds)
        for what, long in seconds.items():
            if long > SIGNIFICANT * base[what]:
                rates[what][name] = (first, (long - base[what]) / (value - first))
    return {what: Line(base[what], rates[what]) for what in base}


def _undisturbed(
    observe: Callable[[Mapping[str, int]], Seconds], counts: Mapping[str, int], first: Seconds
) -> Seconds:
    """Return the least of a first and a second observation: others on the machine only ever add.

    What takes long is not done again.
    """
    if sum(first.values()) > LONG_WORK:
        return first
    again = observe(counts)
    return {what: min(took, again[what]) for what, took in first.items()}


def _told(seconds: Seconds, base: Seconds) -> bool:
    return any(long - base[what] > max(LONG_ENOUGH, base[what]) for what, long in seconds.items())


def _next(value: int, seconds: float) -> int:
    """Return the next count to try: of what is short, one that may be long enough already."""
    fitting = value * 2 * LONG_ENOUGH / max(seconds, 1e-3)
    return max(value + 1, value * GROWTH, round(fitting))
