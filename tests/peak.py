"""The peak of this process's memory while something runs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest


def peak_of(run: Callable[[], object]) -> int:
    """Return the most bytes that the process held while ``run`` ran.

    As the kernel counts them, mapped pages of files included: Python's own tracing does not see
    what torch takes. Only peaks of one process compare, the smaller task's taken first: what it
    gave back may still be the process's.
    """
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("the kernel does not tell peaks here")
    gc.collect()
    reset.write_text("5")
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
