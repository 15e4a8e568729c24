"""What running stages will take, judging by what they and their kin took before."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from pipelines.explaining.past_runs import PastRun
from pipelines.explaining.tasks import Task
from pipelines.graph.dag import Dag

_SEEDS = ("seed", "pool_seed")


@dataclass(frozen=True)
class ExpectedTime:
    """What a stage will take.

    Attributes:
        seconds: Wall time.
        num_runs: Past runs that it is the median of.
        kin: Whose runs these were: `this stage`, `other seeds`, ...
        steps: Number of steps that it will take, where that was scaled; 0: nothing was.
        steps_before: Numbers of steps that those runs took.
    """

    seconds: float
    num_runs: int
    kin: str
    steps: int = 0
    steps_before: tuple[int, ...] = ()


def expected_time(task: Task, steps: int | None, runs: Sequence[PastRun]) -> ExpectedTime | None:
    """Return what a stage will take, from the closest kin that ran; None: none did.

    Args:
        task: What it works on.
        steps: Number of steps it will take; None: it has no such number.
        runs: All past runs.
    """
    for kin, is_kin, same_unit in _kinship(task):
        found = [run for run in runs if is_kin(run.task)]
        if not found:
            continue
        # Runs of a known number of steps tell more than runs that may have had another.
        sized = [run for run in found if run.steps] if steps and same_unit else []
        alike = [run for run in sized if run.steps == steps] or (found if not sized else [])
        if alike or not steps:
            return ExpectedTime(median(run.seconds for run in alike), len(alike), kin)
        before = sorted({run.steps for run in sized if run.steps})
        seconds = median(_scaled(run, steps) for run in sized)
        return ExpectedTime(seconds, len(sized), kin, steps, tuple(before))
    return None


def _scaled(run: PastRun, steps: int) -> float:
    """Return a run's seconds with its loop of another length; the rest does not go with it."""
    return run.seconds + run.loop_seconds * (steps / (run.steps or steps) - 1.0)


def _kinship(wanted: Task) -> Iterator[tuple[str, Callable[[Task], bool], bool]]:
    """Yield kin from the closest on: a name, who it is, and whether steps mean the same."""
    method, variant = wanted.method, wanted.point.get("variant")
    named = f"{wanted.stage} {variant}" if variant else wanted.stage
    axes = [axis for axis in wanted.point if axis not in _SEEDS]
    yield "this stage", lambda other: other == wanted, True
    if len(axes) < len(wanted.point):
        yield "other seeds", lambda other: wanted.is_like(other, *axes), True
    if method:
        of_method = ("variant", "method")
        yield f"{named} with {method}", lambda other: wanted.is_like(other, *of_method), True
    yield named, lambda other: wanted.is_like(other, "variant"), not method
    if variant and method:
        yield f"other arms with {method}", lambda other: wanted.is_like(other, "method"), True


def wall_seconds(dag: Dag, seconds: Mapping[str, float], limit: int) -> float:
    """Return how long stages take together, each after those it is made from.

    They are taken not to slow each other down.

    Args:
        dag: The graph.
        seconds: What each stage takes; a stage without an entry takes no time.
        limit: How many run at a time.
    """
    order = {name: place for place, name in enumerate(dag.stages)}
    waiting = {
        name: dag.ancestors([name]).intersection(seconds) for name in dag.stages if name in seconds
    }
    now, running, done = 0.0, list[tuple[float, int, str]](), set[str]()
    while waiting or running:
        ready = sorted(
            (n for n, needed in waiting.items() if needed <= done), key=order.__getitem__
        )
        for name in ready[: limit - len(running)]:
            del waiting[name]
            heapq.heappush(running, (now + seconds[name], order[name], name))
        now, _, ended = heapq.heappop(running)
        done.add(ended)
    return now
