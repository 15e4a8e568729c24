"""`kdci check --estimate`: what an experiment needs before any of it has run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from kdci.config.params import Params
from kdci.data.open_world.candidates import PoolPart
from kdci.errors import UserError
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from kdci.graph.standing import is_in_place
from kdci.store.layout import Layout
from kdci.training.runtime import Runtime, processor, start
from pipelines.checking.estimating.counting import Counted, count_part, count_split
from pipelines.checking.estimating.memory import HostNeed, MemoryNeed, host_needs, stage_memory
from pipelines.checking.estimating.probe import Key, Probes, probe
from pipelines.checking.estimating.stage_steps import (
    Reading,
    Side,
    StageWork,
    stage_work,
)
from pipelines.checking.estimating.storage import DiskNeed, disk_needs

PROBE_SECONDS = 45.0
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
        incomplete: How many of them have a part that is not known.
    """

    kind: str
    method: str
    number: int = 0
    seconds: float = 0.0
    incomplete: int = 0


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
        hardware: What was probed.
        note: What the reader has to know of the hardware first; "": nothing.
        probes: What was measured.
        device_bytes: Memory of the device.
        data: What it reads.
        disk: What it writes.
        memory: The heaviest stage of each kind.
        host: The largest holdings of images in host memory.
        times: By kind and method.
        num_stages: How many stages there are.
        num_in_place: How many of them are in place.
        num_adopted: Teachers to adopt.
        by_step: Seconds by kind of step and network.
        reading_seconds: What decoding takes.
        start_seconds: What the start of processes takes.
        budgets: Seconds by budget, and whether that is all of it.
        unknown: What could not be counted, by stage.
    """

    params: Params
    hardware: str
    note: str
    probes: Probes
    device_bytes: int
    data: list[DataNeed] = field(default_factory=list)
    disk: list[DiskNeed] = field(default_factory=list)
    memory: list[MemoryNeed] = field(default_factory=list)
    host: list[HostNeed] = field(default_factory=list)
    times: list[KindTime] = field(default_factory=list)
    num_stages: int = 0
    num_in_place: int = 0
    num_adopted: int = 0
    by_step: dict[Key, float] = field(default_factory=dict)
    reading_seconds: float = 0.0
    start_seconds: float = 0.0
    budgets: dict[float, tuple[float, bool]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """One stage after another."""
        return sum(entry.seconds for entry in self.times)


def estimate(params: Params, layout: Layout, *, seconds: float = PROBE_SECONDS) -> Estimate:
    """Probe what the stages that are not in place need; nothing is written.

    Args:
        params: The experiment.
        layout: Its places.
        seconds: What probing may take, about.
    """
    runtime, note = _runtime(params)
    sides = _sides(params, layout)
    pending, num_stages = _pending(params, layout, sides)
    works = [(stage, side, stage_work(stage, side)) for stage, side in pending]
    tally = sum((work.steps for _, _, work in works), Counter())
    readings = list(dict.fromkeys(r for _, _, work in works for r in work.reads))
    by_dataset = {side.params.data.name: side for side in sides.values()}
    parts = dict(_parts(sides["main"], layout))
    probes = probe(tally, readings, by_dataset, parts, runtime, seconds=seconds)
    found = Estimate(params, _hardware(runtime), note, probes, _device_bytes(runtime))
    found.num_stages, found.num_in_place = num_stages, num_stages - len(pending)
    found.data = list(_data(params, layout, sides))
    found.disk = disk_needs(pending, probes)
    found.memory = _heaviest(pending, probes)
    found.host = _host(pending, probes)
    _add_times(found, works)
    found.budgets = dict(_budgets(params, layout, sides, probes))
    return found


def _runtime(params: Params) -> tuple[Runtime, str]:
    block = params.runtime
    try:
        runtime = start(device=block.device, threads=block.threads, precision=block.precision)
        return runtime, _busy(runtime)
    except UserError as error:
        runtime = start(device="cpu", threads=block.threads, precision="auto")
        return runtime, f"{error}: probed on the processor of this machine"


def _busy(runtime: Runtime) -> str:
    """Return a warning if others compute on this machine too; one thread is timed for itself."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if runtime.threads == 1 or load < cores / 2 + 0.5:
        return ""
    what = f"others keep this machine busy (load {load:.1f} on {cores} cores)"
    return f"{what}: seconds come out several times too long"


def _hardware(runtime: Runtime) -> str:
    if runtime.device.type == "cuda":
        return f"{torch.cuda.get_device_name(runtime.device)}, {runtime.precision}"
    threads = "1 thread" if runtime.threads == 1 else f"{runtime.threads} threads"
    return f"{processor()}, {threads}, {runtime.precision}"


def _device_bytes(runtime: Runtime) -> int:
    if runtime.device.type == "cuda":
        return int(torch.cuda.get_device_properties(runtime.device).total_memory)
    return int(psutil.virtual_memory().total)


def _sides(params: Params, layout: Layout) -> dict[str, Side]:
    """Return the pipelines of the teachers and of the other models, with what they read."""
    found = {"main": params}
    if params.grid.others:
        found["other"] = params.of_other()
    sides = {}
    for name, own in found.items():
        side = Side(own, count_split(own, layout, "train"), count_split(own, layout, "test"))
        for method in (*own.grid.methods, *own.grid.controls):
            parts = [part for _, part in _parts_of(own, method, layout)]
            wanted = getattr(own.method(method), "num_selected", 0)
            side.parts[method] = [count_part(part, wanted) for part in parts]
        sides[name] = side
    return sides


def _parts(side: Side, layout: Layout) -> Iterator[tuple[Reading, PoolPart]]:
    grid, name = side.params.grid, side.params.data.name
    for method in (*grid.methods, *grid.controls):
        for number, part in _parts_of(side.params, method, layout):
            yield Reading(name, f"{method}.{number}"), part


def _parts_of(params: Params, method: str, layout: Layout) -> Iterator[tuple[int, PoolPart]]:
    open_world = getattr(params.method(method), "open_world", None)
    for number, part in enumerate(open_world.parts if open_world is not None else ()):
        path = layout.root / part.path if part.path else None
        yield number, PoolPart(part.source, path, part.num_images)


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
        for (number, part), counted in zip(_parts_of(params, method, layout), counts, strict=True):
            key = f"methods.{method}.open_world"
            key += f".sources.{number}" if len(counts) > 1 else ""
            yield DataNeed(key, part.source, part.path, counted)


def _heaviest(pending: list[tuple[Node, Side]], probes: Probes) -> list[MemoryNeed]:
    """Return the stage of each kind that needs the most, those that could not be told last."""
    found: dict[str, MemoryNeed] = {}
    for stage, side in pending:
        need = stage_memory(stage, side, probes)
        known = found.get(stage.kind)
        if need is not None and (known is None or need.total > known.total):
            found[stage.kind] = need
    return list(found.values())


def _host(pending: list[tuple[Node, Side]], probes: Probes) -> list[HostNeed]:
    needs = {
        need.what: need
        for stage, side in pending
        for need in host_needs(stage, side, probes.features)
    }
    return sorted(needs.values(), key=lambda need: -need.num_bytes)


def _add_times(found: Estimate, works: list[tuple[Node, Side, StageWork]]) -> None:
    times: dict[tuple[str, str], KindTime] = {}
    for stage, side, work in works:
        adopts = stage.kind == "teacher" and side.params.teacher.artifact is not None
        found.num_adopted += adopts
        method = str(stage.point.get("method", ""))
        kind = "adopted teacher" if adopts else stage.kind
        entry = times.setdefault((kind, method), KindTime(kind, method))
        seconds, is_whole = work_seconds(work, found.probes)
        entry.number += 1
        entry.seconds += seconds
        entry.incomplete += not is_whole
        found.unknown += [f"{stage.name}: {what}" for what in work.unknown]
        found.start_seconds += found.probes.start
        for step, count in work.steps.items():
            key, each = (step.kind, step.subject), found.probes.step_seconds(step)
            found.by_step[key] = found.by_step.get(key, 0.0) + count * (each or 0.0)
        found.reading_seconds += reading_seconds(work, found.probes)
    found.times = list(times.values())


def work_seconds(work: StageWork, probes: Probes) -> tuple[float, bool]:
    """Return what a stage takes with the start of its process, and whether that is all of it."""
    known = [(count, probes.step_seconds(step)) for step, count in work.steps.items()]
    loop = sum(count * seconds for count, seconds in known if seconds is not None)
    is_whole = not work.unknown and all(seconds is not None for _, seconds in known)
    return probes.start + loop + reading_seconds(work, probes), is_whole


def reading_seconds(work: StageWork, probes: Probes) -> float:
    """Return what decoding takes."""
    return sum(count * probes.reading.get(source, 0.0) for source, count in work.reads.items())


def _budgets(
    params: Params, layout: Layout, sides: dict[str, Side], probes: Probes
) -> Iterator[tuple[float, tuple[float, bool]]]:
    """Yield what the whole takes at other budgets, with what is in place there left out."""
    for budget in BUDGETS:
        if budget == params.budget:
            continue
        other = params.model_copy(update={"budget": budget})
        scaled = {
            name: Side(
                side.params.model_copy(update={"budget": budget}), side.train, side.test, side.parts
            )
            for name, side in sides.items()
        }
        pending, _ = _pending(other, layout, scaled)
        taken = [work_seconds(stage_work(stage, side), probes) for stage, side in pending]
        yield budget, (sum(s for s, _ in taken), all(whole for _, whole in taken))
