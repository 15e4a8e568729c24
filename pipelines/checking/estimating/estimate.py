"""`kdci check --estimate`: what an experiment needs before any of it has run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdci.config.params import Params
from kdci.data.open_world.candidates import parts_of
from kdci.errors import UserError
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from kdci.graph.standing import is_in_place
from kdci.store.layout import Layout
from kdci.training.runtime import start
from pipelines.checking.estimating.counting import Counted, count_part, count_split
from pipelines.checking.estimating.measured import Measurements, measure
from pipelines.checking.estimating.stages import Meter, Side, StageNeed

MEASURING_SECONDS = 600.0
BUDGETS = (1.0, 0.1, 0.01)
"""What the whole would take is told for each of them."""


@dataclass(frozen=True)
class DataNeed:
    """A source of images that the params name.

    Attributes:
        key: Of the params.
        name: Of the dataset, or the kind of source.
        path: Where it belongs; None: it comes with a package.
        counted: How many images it has.
    """

    key: str
    name: str
    path: Path | None
    counted: Counted


@dataclass(frozen=True)
class Estimate:
    """What an experiment needs.

    Attributes:
        params: The experiment.
        note: What the reader has to know of the hardware first; "": nothing.
        measured: What was measured.
        data: What it reads.
        num_stages: How many stages there are.
        by_budget: What each stage takes that is not in place, at the params' budget and others.
    """

    params: Params
    note: str
    measured: Measurements
    data: list[DataNeed]
    num_stages: int
    by_budget: dict[float, list[StageNeed]]

    @property
    def stages(self) -> list[StageNeed]:
        """What each stage takes that is not in place."""
        return self.by_budget[self.params.budget]


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
    sides, budgets = _sides(params, layout), tuple(dict.fromkeys((params.budget, *BUDGETS)))
    pending = _pending(params, layout)
    subjects = [
        subject
        for name, side in sides.items()
        for subject in side.subjects([node for node in pending if _side(node) == name])
    ]
    measured = measure(
        subjects,
        {name: side.params for name, side in sides.items()},
        layout,
        budgets=tuple(sorted(budgets, reverse=True)),
        seconds=seconds,
        tell=tell,
    )
    by_budget = {}
    for budget in budgets:
        meters = {name: Meter(side.at_budget(budget), measured) for name, side in sides.items()}
        waiting = _pending(meters["main"].side.params, layout)
        by_budget[budget] = [meters[_side(node)].need(node) for node in waiting]
    num_stages = len(graph_of(params, layout.root).makers)
    data = list(_data(params, layout, sides))
    return Estimate(params, note, measured, data, num_stages, by_budget)


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
            block = own.method(method)
            wanted = getattr(block, "num_selected", 0)
            open_world = getattr(block, "open_world", None)
            parts = [] if open_world is None else parts_of(open_world, layout.root)
            side.parts[method] = [(part, count_part(part, wanted)) for part in parts]
    return sides


def _pending(params: Params, layout: Layout) -> list[Node]:
    """Return the stages that are not in place."""
    graph = graph_of(params, layout.root)
    return [node for node in graph.makers if not is_in_place(graph, node)]


def _side(node: Node) -> str:
    return "other" if node.of_other else "main"


def _data(params: Params, layout: Layout, sides: dict[str, Side]) -> Iterator[DataNeed]:
    for name, side in sides.items():
        data, prefix = side.params.data, "" if name == "main" else "other."
        path = layout.root / data.path if data.path else None
        if params.teacher.artifact is None:
            yield DataNeed(f"{prefix}data", f"{data.name}, training", path, side.train)
        if data.test is not None:
            yield DataNeed(f"{prefix}data", f"{data.name}, test", path, side.test)
    for method, counts in sides["main"].parts.items():
        for number, (part, counted) in enumerate(counts):
            key = f"methods.{method}.open_world"
            key += f".sources.{number}" if len(counts) > 1 else ""
            yield DataNeed(key, part.source, part.path, counted)
