"""What a stage's process uses while it works: processor, memory, and the GPU it was given.

A thread looks every few seconds and writes a line each time beside the stage's metrics. Nothing
depends on these numbers: whatever goes wrong here is left out, and the stage goes on.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdci.store.metrics import read_metrics

FIRST_SECONDS = 2.0
"""When the first sample is taken, so that a short stage has one."""
INTERVAL_SECONDS = 10.0
MAX_SHARE = 1 / 60
"""Of the time since the start between two samples: 60 in ten minutes, 360 in a day."""

Sample = dict[str, float]


class SystemMonitor:
    """Samples the process from now on, until it is stopped.

    Args:
        file: Where a line goes for each sample; earlier lines, of an interrupted run, stay.
        elapsed: Returns the seconds of the stage's own work, interrupted runs included.
        device: Of the stage, `cpu` or `cuda:N`.
    """

    def __init__(self, file: Path, elapsed: Callable[[], float], device: str) -> None:
        self._file = file
        self._elapsed = elapsed
        self._device = device
        self._samples: list[Sample] = []
        self._earlier: list[Sample] = []
        with suppress(OSError, ValueError):
            self._earlier = read_metrics(file)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="system-metrics", daemon=True)
        with suppress(RuntimeError):  # no thread to be had
            self._thread.start()

    def stop(self) -> dict[str, Any]:
        """Stop looking and return what was seen, fit for the stage's timing.

        Returns:
            ``system``: the samples; ``cpu_seconds`` of all runs; ``peak_memory_bytes`` and, on a
            GPU, ``peak_gpu_memory_bytes`` of this run.
        """
        self._stopped.set()
        with suppress(Exception):
            self._thread.join(timeout=1)  # or it may write into a folder that is being removed
            last = self._sample(_process())
            seen = {"cpu_seconds": last["cpu_seconds"], "peak_memory_bytes": _peak_memory()}
            if "gpu_memory_bytes" in last:
                seen["peak_gpu_memory_bytes"] = _torch().cuda.max_memory_reserved(self._device)
            return {**seen, "system": [*self._earlier, *self._samples]}
        return {}

    def _watch(self) -> None:
        with suppress(Exception):
            process = _process()
            process.cpu_percent()  # the first call only sets the mark that the next counts from
            began = time.monotonic()
            wait = FIRST_SECONDS
            while not self._stopped.wait(wait):
                sample = self._sample(process)
                sample["cpu_percent"] = process.cpu_percent()
                self._samples.append(sample)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(sample) + "\n")
                wait = max(INTERVAL_SECONDS, MAX_SHARE * (time.monotonic() - began))

    def _sample(self, process: Any) -> Sample:
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info().rss
        used = times.user + times.system + times.children_user + times.children_system
        before = self._earlier[-1]["cpu_seconds"] if self._earlier else 0.0
        sample: Sample = {
            "time": round(time.time(), 3),
            "seconds": round(self._elapsed(), 3),
            "cpu_seconds": round(before + used, 3),
            "memory_bytes": memory,
        }
        if self._device.startswith("cuda"):
            cuda = _torch().cuda
            sample["gpu_memory_bytes"] = cuda.memory_reserved(self._device)
            with suppress(Exception):  # needs a library that may not be there
                sample["gpu_percent"] = float(cuda.utilization(self._device))
        return sample


def _process() -> Any:
    import psutil

    return psutil.Process()


def _torch() -> Any:
    """Return torch, which a stage on a GPU has loaded; it is not worth loading for this."""
    return sys.modules["torch"]


def _peak_memory() -> int:
    """Return the most memory that this process has held at once, in bytes."""
    status = Path("/proc/self/status")
    with suppress(OSError, StopIteration, ValueError):
        # Not getrusage: what it tells of a fresh process begins with what its parent held.
        lines = status.read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
