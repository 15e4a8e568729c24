"""How long a step takes by its batch size, measured in a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

FIRST_BATCH = 4
GROWTH = 4
"""Factor from one measured batch size to the next."""
REPEAT_SECONDS = 0.1
"""A batch size is repeated for about this long."""
MOST_REPEATS = 20
LONG_SECONDS = 1.0
"""A run that takes longer stands alone, but at the first size: preparing is little of it."""
SUSPICIOUS = 1.5
"""An image that takes so many times as long as in a smaller batch is measured again."""
MOSTLY_FIXED = 0.5
"""Beyond what was measured time is in proportion to the batch, unless one more image took less
than this share of the mean: then most of a step is a fixed part, as Adam's on many weights."""
LEAST_SLOPE = 0.25
"""Share of the mean that one more image takes at least."""

Step = Callable[[int], None]
"""Takes one step on a batch of so many images."""


@dataclass(frozen=True)
class Curve:
    """Seconds that a step took, by batch size.

    Attributes:
        points: (batch size, seconds), by rising size; at least one.
    """

    points: tuple[tuple[int, float], ...]

    @property
    def largest(self) -> int:
        """The largest batch that was measured."""
        return self.points[-1][0]

    def seconds(self, batch: int) -> float:
        """Return what a step takes: between two measured sizes on a line, above in proportion.

        Below the smallest it takes as long as that one: small batches are overhead. What small
        batches have of it, large ones make up for as they outgrow the processor's caches; only
        where most of a step is fixed are larger ones on the line through the last two sizes.
        """
        if batch <= self.points[0][0]:
            return self.points[0][1]
        for (below, faster), (above, slower) in pairwise(self.points):
            if batch <= above:
                return faster + (slower - faster) * (batch - below) / (above - below)
        size, seconds = self.points[-1]
        return seconds + (batch - size) * self._slope()

    def _slope(self) -> float:
        """Return what one more image takes in batches larger than measured."""
        size, seconds = self.points[-1]
        mean = seconds / size
        if len(self.points) == 1:
            return mean
        before, faster = self.points[-2]
        slope = (seconds - faster) / (size - before)
        return max(LEAST_SLOPE * mean, slope) if slope < MOSTLY_FIXED * mean else mean


class Measuring:
    """Measures a step at one batch size after another, each a few times the one before.

    Args:
        step: What is measured.
        largest: The size asked for; 2 is the least that is measured.
        first: Where to begin.
        settle: Waits for a device that computes behind the caller's back.
        clock: Seconds, rising.
        processor: Seconds that this process has computed, of all its threads together, where
            these do all of the work: a step takes no longer, however busy others keep the
            machine. None: a device does it.
    """

    def __init__(
        self,
        step: Step,
        *,
        largest: int,
        first: int = FIRST_BATCH,
        settle: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        processor: Callable[[], float] | None = None,
    ) -> None:
        self._step, self._settle = step, settle
        self._clock, self._processor = clock, processor
        self._stretch = 1.0
        self._largest = max(largest, 2)
        self._next: int | None = min(first, self._largest)
        self._points: list[tuple[int, float]] = []

    @property
    def curve(self) -> Curve:
        """What was measured so far; at least one size has to be."""
        return Curve(tuple(self._points))

    @property
    def is_done(self) -> bool:
        """Tell whether the size asked for was measured, or is too large for the memory."""
        return self._next is None

    @property
    def next_seconds(self) -> float:
        """About how long measuring the next size will take; of the first nothing is known: 0."""
        if self._next is None or not self._points:
            return 0.0
        size, seconds = self._points[-1]
        expected = self._stretch * seconds * self._next / size
        # A first run at a new size prepares kernels; of a short one a second is timed.
        return expected * (1 if expected > LONG_SECONDS else 2)

    @property
    def again_seconds(self) -> float:
        """About how long measuring the last size again will take."""
        return 2 * self._stretch * self._points[-1][1]

    def repeat(self) -> None:
        """Measure the last size again: what was disturbed before may not be now."""
        batch, took = self._points[-1]
        self._points[-1] = (batch, min(took, self._time(batch)))

    def extend(self) -> None:
        """Measure the next size.

        Raises:
            OutOfMemoryError: Of the device, at the first size; later ones are left out then.
        """
        assert self._next is not None
        try:
            took = self._time(self._next)
            if self._points and took / self._next > SUSPICIOUS * _mean(self._points[-1]):
                took = min(took, self._time(self._next))
        except torch.OutOfMemoryError:
            if not self._points:
                raise
            self._next = None
            return
        self._points.append((self._next, took))
        following = min(self._next * GROWTH, self._largest)
        self._next = following if following > self._next else None

    def _time(self, batch: int) -> float:
        """Return the least of some runs: others use this machine too, and only ever add."""
        first = self._once(batch)
        if first > LONG_SECONDS and self._points:
            return first
        repeats = min(MOST_REPEATS, max(1, round(REPEAT_SECONDS / max(first, 1e-9))))
        return min(self._once(batch) for _ in range(repeats))

    def _once(self, batch: int) -> float:
        began, computed = self._clock(), self._computed()
        self._step(batch)
        self._settle()
        passed = self._clock() - began
        if self._processor is None:
            return passed
        took = min(passed, self._computed() - computed)
        self._stretch = passed / max(took, 1e-9)
        return took

    def _computed(self) -> float:
        return 0.0 if self._processor is None else self._processor()


def _mean(point: tuple[int, float]) -> float:
    return point[1] / point[0]
