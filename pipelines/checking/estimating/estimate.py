"""`kdci check --estimate`: what an experiment needs before any of it has run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdci.config.params import Params
from kdci.data.open_world.candidates import PoolPart, parts_of
from kdci.errors import UserError
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from kdci.graph.standing import is_in_place
from kdci.store.layout import Layout
from kdci.training.runtime import start
from pipelines.checking.estimating.counting import Counted, count_part, count_split, image_bytes
from pipelines.checking.estimating.measured import Measurements, measure
from pipelines.checking.estimating.stages import Side, StageTimes, UnknownError
from pipelines.checking.estimating.storage import DiskNeed, disk_needs

MEASURING_SECONDS = 600.0
BUDGETS = (1.0, 0.1, 0.01)
"""What the whole would take is told for each of them."""


@dataclass
class KindTime:
    """Stages of one kind.

    Attributes:
        kind: What they make.
        method: Of their pools; "" for teachers.
        number: How many are to be made.
        seconds: What they take, as far as it is known.
        incomplete: How many of them are not known.
    """

    kind: str
    method: str
    number: int = 0
    seconds: float = 0.0
    incomplete: int = 0


@dataclass
class MemoryNeed:
    """The most memory that a stage of a kind took while it was measured.

    Attributes:
        kind: What it makes.
        stage: Its name.
        num_bytes: Of the device; on the CPU of the whole process.
    """

    kind: str
    stage: str
    num_bytes: int


@dataclass
class DataNeed:
    """A source of images that the params name.

    Attributes:
        key: Of the params.
        name: Of the dataset, or the kind of source.
        path: Where it belongs; None: it comes with a package.
        counted: How many images it has.
        needed: Whether anybody will open it.
    """

    key: str
    name: str
    path: Path | None
    counted: Counted
    needed: bool = True


@dataclass
class Estimate:
    """What an experiment needs.

    Attributes:
        params: The experiment.
        note: What the reader has to know of the hardware first; "": nothing.
        measured: What was measured.
        data: What it reads.
        disk: What it writes.
        memory: The heaviest stage of each kind.
        times: By kind and method.
        num_stages: How many stages there are.
        num_in_place: How many of them are in place.
        budgets: Seconds by budget, and whether that is all of it.
        unknown: What could not be told, and why.
    """

    params: Params
    note: str
    measured: Measurements
    data: list[DataNeed] = field(default_factory=list)
    disk: list[DiskNeed] = field(default_factory=list)
    memory: list[MemoryNeed] = field(default_factory=list)
    times: list[KindTime] = field(default_factory=list)
    num_stages: int = 0
    num_in_place: int = 0
    budgets: dict[float, tuple[float, bool]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """One stage after another."""
        return sum(entry.seconds for entry in self.times)


def estimate(
    params: Params,
    layout: Layout,
    *,
    seconds: float = MEASURING_SECONDS,
    tell: Callable[[str], None] = lambda line: None,
) -> Estimate:
    """Measure what the stages take that are not in place.

    Args:
        params: The experiment.
        layout: Its places.
        seconds: After so many no further measurement begins.
        tell: Told of each measurement that begins.
    """
    params, note = _on_this_machine(params)
    sides = _sides(params, layout)
    pending, num_stages = _pending(params, layout, sides)
    subjects = [
        subject
        for side in sides.values()
        for subject in side.subjects([node for node, own in pending if own is side])
    ]
    measured = measure(
        subjects,
        {name: side.params for name, side in sides.items()},
        layout,
        budgets=tuple(sorted({params.budget, *BUDGETS}, reverse=True)),
        seconds=seconds,
        tell=tell,
    )
    found = Estimate(params, note, measured)
    found.num_stages, found.num_in_place = num_stages, num_stages - len(pending)
    found.data = list(_data(params, layout, sides))
    found.disk = disk_needs(pending, measured)
    found.memory = _heaviest(pending, measured)
    found.times, found.unknown = _times(pending, measured)
    found.budgets = dict(_budgets(params, layout, sides, measured))
    return found


def _on_this_machine(params: Params) -> tuple[Params, str]:
    """Return the params with a device that is here, and what the reader has to know of it."""
    block = params.runtime
    try:
        runtime = start(device=block.device, threads=block.threads, precision=block.precision)
    except UserError as error:
        here = block.model_copy(update={"device": "cpu", "precision": "auto"})
        note = f"{error}: measured on the processor of this machine"
        return params.model_copy(update={"runtime": here}), note
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if runtime.threads == 1 or load < cores / 2 + 0.5:
        return params, ""
    what = f"others keep this machine busy (load {load:.1f} on {cores} cores)"
    return params, f"{what}: seconds come out several times too long"


def _sides(params: Params, layout: Layout) -> dict[str, Side]:
    """Return the pipelines of the teachers and of the other models, with what they read."""
    found = {"main": params}
    if params.grid.others:
        found["other"] = params.of_other()
    sides = {}
    for name, own in found.items():
        train, test = count_split(own, layout, "train"), count_split(own, layout, "test")
        side = sides[name] = Side(name, own, train, test)
        for method in (*own.grid.methods, *own.grid.controls):
            wanted = getattr(own.method(method), "num_selected", 0)
            parts = _parts_of(own, method, layout)
            side.parts[method] = [count_part(part, wanted) for part in parts]
    return sides


def _parts_of(params: Params, method: str, layout: Layout) -> list[PoolPart]:
    open_world = getattr(params.method(method), "open_world", None)
    return [] if open_world is None else parts_of(open_world, layout.root)


def _pending(
    params: Params, layout: Layout, sides: dict[str, Side]
) -> tuple[list[tuple[Node, Side]], int]:
    """Return the stages that are not in place, each with its side; and how many there are."""
    graph = graph_of(params, layout.root)
    waiting = [node for node in graph.makers if not is_in_place(graph, node)]
    return [(n, sides["other" if n.of_other else "main"]) for n in waiting], len(graph.makers)


def _data(params: Params, layout: Layout, sides: dict[str, Side]) -> Iterator[DataNeed]:
    for name, side in sides.items():
        data, prefix = side.params.data, "" if name == "main" else "other."
        path = layout.root / data.path if data.path else None
        trains, tests = params.teacher.artifact is None, data.test is not None
        for split, counted, needed in (
            ("training", side.train, trains),
            ("test", side.test, tests),
        ):
            yield DataNeed(f"{prefix}data", f"{data.name}, {split}", path, counted, needed)
    for method, counts in sides["main"].parts.items():
        parts = _parts_of(params, method, layout)
        for number, (part, counted) in enumerate(zip(parts, counts, strict=True)):
            key = f"methods.{method}.open_world"
            key += f".sources.{number}" if len(counts) > 1 else ""
            yield DataNeed(key, part.source, part.path, counted)


def _heaviest(pending: list[tuple[Node, Side]], measured: Measurements) -> list[MemoryNeed]:
    """Return the stage of each kind that took the most; those that were not measured are left out.

    A teacher's training images are added to what was measured, where they lie in memory.
    """
    found: dict[str, MemoryNeed] = {}
    for node, side in pending:
        point, num_bytes = {axis: str(value) for axis, value in node.point.items()}, 0
        if node.stage == "teacher" and side.params.teacher.artifact is None:
            one = measured.backbone(side.name, point["teacher"]) or {}
            images = 0 if side.train.is_lazy else side.train.num_images or 0
            num_bytes = int(one.get("peak", 0)) + images * image_bytes(side.params.data.spec)
        elif node.stage in ("substitute", "distill"):
            axes = ("teacher", "student", "method")
            own = {axis: point[axis] for axis in axes if axis in point}
            what = "peak" if node.stage == "distill" else "pool_peak"
            num_bytes = int((measured.pair(side.name, **own) or {}).get(what, 0))
        known = found.get(node.kind)
        if num_bytes and (known is None or num_bytes > known.num_bytes):
            found[node.kind] = MemoryNeed(node.kind, node.name, num_bytes)
    return list(found.values())


def _times(
    pending: list[tuple[Node, Side]], measured: Measurements
) -> tuple[list[KindTime], list[str]]:
    """Return what stages take by kind and method, and what could not be told."""
    times: dict[tuple[str, str], KindTime] = {}
    unknown = []
    for node, side in pending:
        adopts = node.kind == "teacher" and side.params.teacher.artifact is not None
        kind = "adopted teacher" if adopts else node.kind
        method = str(node.point.get("method", ""))
        entry = times.setdefault((kind, method), KindTime(kind, method))
        entry.number += 1
        try:
            entry.seconds += StageTimes(side, measured).seconds(node)
        except UnknownError as error:
            entry.incomplete += 1
            unknown.append(f"{node.stage}: {error}")
    return list(times.values()), list(dict.fromkeys(unknown))


def _budgets(
    params: Params, layout: Layout, sides: dict[str, Side], measured: Measurements
) -> Iterator[tuple[float, tuple[float, bool]]]:
    """Yield what the whole takes at other budgets, with what is in place there left out."""
    for budget in BUDGETS:
        if budget != params.budget:
            scaled = {name: side.at_budget(budget) for name, side in sides.items()}
            pending, _ = _pending(scaled["main"].params, layout, scaled)
            times, unknown = _times(pending, measured)
            yield budget, (sum(entry.seconds for entry in times), not unknown)
