"""Times of several actions, taken in turn, so that other load on the machine meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Action = Callable[[], object]
"""Does what is timed, once."""


class Taken(NamedTuple):
    """What an action took.

    Attributes:
        seconds: By the clock on the wall.
        processor: Seconds this process computed, of all its threads together and without its
            children: other work on the machine hardly adds to them.
    """

    seconds: float
    processor: float


def taken_in_turn(
    actions: Mapping[str, Action], *, repeats: int, warm_up: int, device: torch.device
) -> dict[str, list[Taken]]:
    """Return what each action takes, one after the other, ``repeats`` times.

    Args:
        actions: By name.
        repeats: Timings of each that are kept.
        warm_up: Rounds before them that are not.
        device: Waited for before the clock is read.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in actions}
    for repeat in range(-warm_up, repeats):
        for name, action in actions.items():
            now = take(action, device)
            if repeat >= 0:
                taken[name].append(now)
    return taken


def take(action: Action, device: torch.device) -> Taken:
    """Do an action and return what it takes."""
    wait_for(device)
    began, computed = time.perf_counter(), time.process_time()
    action()
    wait_for(device)
    return Taken(time.perf_counter() - began, time.process_time() - computed)


def time_in_turn(
    actions: Mapping[str, Action], *, repeats: int, warm_up: int, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of each action by the clock on the wall; see ``taken_in_turn``."""
    taken = taken_in_turn(actions, repeats=repeats, warm_up=warm_up, device=device)
    return {name: [each.seconds for each in found] for name, found in taken.items()}


def wait_for(device: torch.device) -> None:
    """Wait until a device that computes behind the caller's back is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds.

    Args:
        seconds: At least two timings.
    """
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
