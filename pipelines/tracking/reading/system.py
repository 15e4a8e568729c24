"""System metrics: what a stage's process used, as points that MLflow's page for them shows.

They are those of the process, and named so: MLflow's own names stand for the whole machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kdci.store.metrics import read_metrics
from pipelines.tracking.reading.readings import valid_samples
from pipelines.tracking.writing.record import Point

_MEGABYTE = 1e6
_SHOWN = {
    "cpu_percent": ("system/process_cpu_percentage", 1.0),  # of one core
    "memory_bytes": ("system/process_memory_megabytes", 1 / _MEGABYTE),
    "gpu_memory_bytes": ("system/process_gpu_memory_megabytes", 1 / _MEGABYTE),
    "gpu_percent": ("system/gpu_utilization_percentage", 1.0),
}


def read_samples(file: Path) -> list[dict[str, float]]:
    """Read the samples of a stage at work; a line that is none ends them."""
    try:
        return valid_samples(read_metrics(file))
    except (OSError, UnicodeError):
        return []


def system_points(samples: Iterable[dict[str, float]]) -> Iterator[Point]:
    """Yield the points of samples; their step is the second of the stage's own work."""
    for sample in samples:
        for name, (key, factor) in _SHOWN.items():
            if name in sample:
                value = sample[name] * factor
                yield Point(key, value, int(sample["seconds"]), int(sample["time"] * 1000))
