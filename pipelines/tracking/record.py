"""Runs and metric points as plain values, free of MLflow, and the tags runs are found by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

PARENT = "mlflow.parentRunId"
ARTIFACT = "kdci.artifact"
CELL = "kdci.cell"
CONTENT = "kdci.content"
INDEXED = {ARTIFACT, CELL, CONTENT, PARENT}
"""Tags that runs are found by."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int
    milliseconds: int


@dataclass
class RunRecord:
    """A run as the store knows it.

    Attributes:
        run_id: MLflow's id.
        status: MLflow's status: `RUNNING`, `FINISHED`, `FAILED`, `KILLED`, `SCHEDULED`.
        tags: Its tags.
        metrics: Latest value of each metric.
        params: Its params.
        started: Unix seconds.
        new: Whether this pass created it, so that nothing can be in it yet.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    new: bool = False
