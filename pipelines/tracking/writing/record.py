"""Runs and metric points as plain values, free of MLflow, and the tags runs are found by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PARENT = "mlflow.parentRunId"
ARTIFACT = "kdci.artifact"
CELL = "kdci.cell"
CONTENT = "kdci.content"
SEARCH = "kdci.search"
TRIAL = "kdci.trial"
INDEXED = {ARTIFACT, CELL, CONTENT, PARENT, SEARCH, TRIAL}
"""Tags that runs are found by."""


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    step: int
    milliseconds: int


@dataclass(frozen=True)
class DatasetUse:
    """A dataset that a run read; no array is copied.

    Attributes:
        name: What it is.
        digest: Hash that tells one state of it from another.
        context: What it was read for: `teacher`, `substitution`, `evaluation`, `holdout`.
        source: Where it is, as the params or the project folder name it.
        facts: Sizes, JSON types.
    """

    name: str
    digest: str
    context: str
    source: str
    facts: Mapping[str, Any] = field(default_factory=dict)


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
        inputs: Name and digest of each dataset it read.
        new: Whether this pass created it, so that nothing can be in it yet.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    inputs: set[tuple[str, str]] = field(default_factory=set)
    new: bool = False
