"""Where numbers go while they are made: a protocol, and the JSON-lines file behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class MetricSink(Protocol):
    """Receives named numbers; the library logs through nothing else."""

    def log(self, step: int, **values: float) -> None:
        """Record ``values`` at ``step`` (a count of finished epochs or calls)."""


class MetricFile:
    """Metrics as one JSON object a line: ``{"step": 3, "loss": 0.5}``.

    Lines are flushed as they are written, so that a reader can follow a run. Values that
    are not finite are refused: they belong in an error, not in a curve.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.newest: dict[str, float] = {}
        self._num_lines = len(read_metrics(path)) if path.exists() else 0

    def log(self, step: int, **values: float) -> None:
        """Append one line."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"metric {name} at step {step} is {value}")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.newest = values
        self._num_lines += 1

    def truncate(self, num_lines: int) -> None:
        """Keep the first ``num_lines`` lines: what a checkpoint knows of."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = "".join(line + "\n" for line in lines[:num_lines])
        self.path.write_text(kept, encoding="utf-8")
        self._num_lines = min(num_lines, len(lines))

    def __len__(self) -> int:
        return self._num_lines


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a metrics file; a torn last line (a run still writing) is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunningMeans:
    """Means of named numbers over an epoch; its state is part of a checkpoint."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step's values."""
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means and start over."""
        means = {name: total / self.count for name, total in self.totals.items()}
        self.totals, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs."""
        return {"totals": self.totals, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.totals, self.count = dict(state["totals"]), state["count"]
