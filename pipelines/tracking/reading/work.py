"""Unfinished executions: what runs now, and what was stopped before its artifact was whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdci.errors import IntegrityError
from kdci.store.layout import Layout
from pipelines.running.workspace import is_held
from pipelines.tracking.reading.files import Slot
from pipelines.tracking.reading.readings import metric_rows, read_object
from pipelines.tracking.reading.system import read_samples

WorkStatus = Literal["RUNNING", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Work:
    """An execution that has left a checkpoint, but no artifact yet.

    Attributes:
        slot: What it is to become.
        key: Name of its work folder: a resumed execution has the same.
        status: Whether a process is at it, or how it ended.
        reason: Why it ended, if it said so.
        started: Unix seconds of its first start.
        params: Params blocks it depends on.
        metrics: Its metrics so far.
        system: What its process used so far.
    """

    slot: Slot
    key: str
    status: WorkStatus
    reason: str
    started: float
    params: dict[str, Any]
    metrics: list[dict[str, float]]
    system: list[dict[str, float]]


def read_work(folder: Path, layout: Layout, by_path: Mapping[str, Slot]) -> Work | None:
    """Read the work folder ``.kdci/work/<slug>/<key>``; None: not of the current grid.

    Raises:
        IntegrityError: Its identity is damaged.
    """
    lock = layout.work / "locks" / f"{folder.parent.name}.lock"
    running = is_held(lock)
    try:
        identity = read_object(folder / "identity.json")
        slot = by_path.get(str(identity["artifact"]))
        started, params = float(identity["started"]), dict(identity["params"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(str(folder), "is not a readable work folder", "remove it") from None
    if slot is None:
        return None
    ending: tuple[WorkStatus, str] = ("RUNNING", "")
    status, reason = ending if running else _ending(folder / "failure.json")
    metrics = metric_rows(folder / "metrics.jsonl")
    system = read_samples(folder / "system.jsonl")
    return Work(slot, folder.name, status, reason, started, params, metrics, system)


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
