"""Names of the tags that runs are known by, and how cards and metrics read as tags and points.

The tag ``kdci.run`` tells what a run is: a `cell` is the parent of what belongs to it alone; a
`stage` is one execution of one DVC stage; a `score` is a cell's row of an evaluation; there is
one `report` for each content; a `search` is the parent of its trials, a `trial` one point of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kdci.graph.node import Node
from kdci.store.layout import Layout
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.readings import Timing, flatten

PARENT = "mlflow.parentRunId"
ARTIFACT = "kdci.artifact"
CELL = "kdci.cell"
CONTENT = "kdci.content"
SEARCH = "kdci.search"
TRIAL = "kdci.trial"
INDEXED = {ARTIFACT, CELL, CONTENT, PARENT, SEARCH, TRIAL}
"""Tags that runs are found by."""
RUN = "kdci.run"
PRESET = "kdci.preset"
PAIR = "kdci.pair"
ARM = "kdci.arm"
"""Method and variant in one, to group the seeds of an arm by."""
BUDGET = "kdci.budget"
"""Factor on the steps of pools and students."""
PARAMS_HASH = "kdci.params_hash"
WORK_KEY = "kdci.work"
LINES = "kdci.metric_lines"
VERSION = "kdci.dictionary_version"
FAILURE = "kdci.failure"
_SYSTEM = {
    # Those of the stage's process, and named so: MLflow's own names stand for the whole machine.
    "cpu_percent": ("system/process_cpu_percentage", 1.0),  # of one core
    "memory_bytes": ("system/process_memory_megabytes", 1e-6),
    "gpu_memory_bytes": ("system/process_gpu_memory_megabytes", 1e-6),
    "gpu_percent": ("system/gpu_utilization_percentage", 1.0),
}
"""Samples of what a stage used, as MLflow's page of system metrics shows them."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int
    milliseconds: int


def identity_tags(finished: Finished) -> dict[str, str]:
    """Return what a finished execution is known by: artifact path, content, params."""
    return {
        ARTIFACT: finished.artifact,
        CONTENT: finished.content,
        PARAMS_HASH: finished.params_hash,
    }


def node_tags(node: Node, layout: Layout) -> dict[str, str]:
    """Return what is known of an execution before it has run."""
    return {
        "dvc.stage": node.name,
        "kdci.stage": node.stage,
        PRESET: layout.preset,
        ARTIFACT: layout.relative(node.artifact),
        **field_tags(node.fields),
    }


def field_tags(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return axes such as teacher and seed as tags."""
    return {f"kdci.{name}": str(value) for name, value in fields.items()}


def provenance_tags(card: Mapping[str, Any]) -> dict[str, str]:
    """Return code, runtime and file hashes of an artifact as tags."""
    code, runtime = card.get("code", {}), card.get("runtime", {})
    tags = {
        "git.commit": code.get("revision"),
        "kdci.code_hash": code.get("hash"),
        "kdci.reproducible": card.get("reproducible"),
        **{f"runtime.{name}": runtime.get(name) for name in ("device", "threads", "precision")},
        **{f"sha256.{name}": entry["sha256"] for name, entry in card["files"].items()},
    }
    return dict(flatten({name: value for name, value in tags.items() if value is not None}))


def curve_points(rows: list[dict[str, float]], timing: Timing) -> Iterator[Point]:
    """Yield the points of metric rows, their times spread over the execution."""
    span = timing.finished - timing.started
    for position, row in enumerate(rows, start=1):
        at = timing.started + span * position / len(rows)
        values = {name: value for name, value in row.items() if name != "step"}
        yield from points(values, int(row["step"]), at)


def points(values: Mapping[str, float], step: int, at: float) -> list[Point]:
    """Return ``values`` as points of one step at ``at`` (Unix seconds)."""
    return [Point(name, value, step, int(at * 1000)) for name, value in values.items()]


def system_points(samples: Iterable[Mapping[str, float]]) -> Iterator[Point]:
    """Yield the points of samples; their step is the second of the stage's own work."""
    for sample in samples:
        for name, (key, factor) in _SYSTEM.items():
            if name in sample:
                value = sample[name] * factor
                yield Point(key, value, int(sample["seconds"]), int(sample["time"] * 1000))
