"""Unfinished executions: what runs now, and what was stopped before its artifact was whole."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdci.errors import IntegrityError
from kdci.graph.build import Graph
from kdci.graph.node import Node
from kdci.store.metrics import read_metrics
from pipelines.running.workspace import is_held
from pipelines.tracking.reading.readings import metric_rows, read_object, valid_samples

WorkStatus = Literal["RUNNING", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Work:
    """An execution that has left a checkpoint, but no artifact yet.

    Attributes:
        node: What it is to become.
        artifact: Its folder, relative to the project folder.
        key: Name of its work folder: a resumed execution has the same.
        status: Whether a process is at it, or how it ended.
        reason: Why it ended, if it said so.
        started: Unix seconds of its first start.
        params: Params blocks it depends on.
        metrics: Its metrics so far.
        system: What its process used so far.
    """

    node: Node
    artifact: str
    key: str
    status: WorkStatus
    reason: str
    started: float
    params: dict[str, Any]
    metrics: list[dict[str, float]]
    system: list[dict[str, float]]


def read_work(folder: Path, graph: Graph) -> Work | None:
    """Read the work folder ``.kdci/work/<node>/<key>``; None: not of the current graph.

    Raises:
        IntegrityError: Its identity is damaged.
    """
    lock = graph.layout.work / "locks" / f"{folder.parent.name}.lock"
    running = is_held(lock)
    try:
        identity = read_object(folder / "identity.json")
        artifact = str(identity["artifact"])
        started, params = float(identity["started"]), dict(identity["params"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(str(folder), "is not a readable work folder", "remove it") from None
    node = graph.by_artifact.get(graph.layout.root / artifact)
    if node is None:
        return None
    status: WorkStatus = "RUNNING"
    reason = ""
    if not running:
        status, reason = _ending(folder / "failure.json")
    metrics = metric_rows(folder / "metrics.jsonl")
    system: list[dict[str, float]] = []
    with suppress(OSError, UnicodeError):
        system = valid_samples(read_metrics(folder / "system.jsonl"))
    return Work(node, artifact, folder.name, status, reason, started, params, metrics, system)


def _ending(file: Path) -> tuple[WorkStatus, str]:
    """Return how a stage that runs no more ended, and why if it said so."""
    try:
        failure = read_object(file)
        exit_code, message = int(failure["exit_code"]), str(failure["message"])
    except FileNotFoundError:
        return "KILLED", ""
    except (KeyError, TypeError, ValueError):
        return "FAILED", "its failure.json is damaged"
    status: WorkStatus = "KILLED" if exit_code > 128 else "FAILED"  # above 128: by a signal
    return status, f"{message} (exit code {exit_code})"
