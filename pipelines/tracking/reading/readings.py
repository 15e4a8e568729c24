"""Small readers: metrics, wall times, JSON objects, and trees as dotted names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.errors import IntegrityError
from kdci.graph.node import Node
from kdci.store.artifacts import CARD
from kdci.store.metrics import read_metrics

RERUN = "run `dvc repro`"


def metric_rows(file: Path) -> list[dict[str, float]]:
    """Read a metrics file; none at all is no rows.

    Raises:
        IntegrityError: A line is no metrics line.
    """
    try:
        rows = read_metrics(file) if file.exists() else []
        return [{"step": int(row["step"]), **numbers(row)} for row in rows]
    except FileNotFoundError:
        return []  # the work folder of a stage that has just finished
    except (KeyError, TypeError, AttributeError, ValueError):
        raise IntegrityError(str(file), "is not a metrics file", RERUN) from None


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers among ``values``."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


@dataclass(frozen=True)
class Timing:
    """Wall times of an execution: Unix seconds, seconds of its own work, and what it used."""

    started: float
    finished: float
    values: dict[str, float]
    system: list[dict[str, float]] = field(default_factory=list)


def read_timing(node: Node) -> Timing:
    """Read the wall times of a node; without them the card's own time stands in."""
    try:
        timing = read_object(node.timing)
        values, samples = numbers(timing), timing.get("system")
        started, finished = values.pop("started"), values.pop("finished")
        return Timing(started, finished, values, valid_samples(samples))
    except (OSError, KeyError, TypeError, ValueError):
        written = (node.artifact / CARD).stat().st_mtime
        return Timing(written, written, {})


def valid_samples(rows: Any) -> list[dict[str, float]]:
    """Return the samples among ``rows``, which may be anything."""
    if not isinstance(rows, list):
        return []
    samples = [numbers(row) for row in rows if isinstance(row, dict)]
    return [sample for sample in samples if sample.keys() >= {"time", "seconds"}]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a tree under dotted names, as JSON but for plain strings."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        TypeError: It is another JSON value.
    """
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError
    return value
