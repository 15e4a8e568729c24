"""The most memory that one way of doing a case takes, in a process of its own.

In one process an allocator that has grown for one way would hide what the next one needs. On the
CPU it is how far the process grows beyond what it holds once all is built, workers not counted,
which Linux alone tells; on CUDA what torch has allocated at most, which is untested.

    python -m benchmarks.peak_memory CASE WAY SETTINGS FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from benchmarks.catalogue import step_cases
from benchmarks.interleaved import Action
from benchmarks.place import Place
from benchmarks.way_process import started
from kdci.config.params import Runtime as Settings

ROOT = Path(__file__).resolve().parents[1]


def in_a_child(key: str, way: str, settings: Settings, decided: Path) -> int:
    """Return the bytes of one way of a case, measured in a process of its own.

    Args:
        key: Of the case; not a quick one, whose memory is that of the libraries.
        way: Which of its ways.
        settings: Of the process.
        decided: Folder of what the format probe has decided.

    Raises:
        CalledProcessError: The process failed; it has said why.
    """
    arguments = [key, way, settings.model_dump_json(), str(decided)]
    command = [sys.executable, "-m", "benchmarks.peak_memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


def peak(action: Action, device: torch.device) -> int:
    """Return the bytes that an action needs beyond what there is before it, at most."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return int(torch.cuda.max_memory_allocated(device)) - before
    before = psutil.Process().memory_info().rss
    # Sets the high-water mark back to what is held now.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    action()
    return max(0, _high_water_mark() - before)


def _high_water_mark() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


def main(arguments: Sequence[str]) -> int:
    """Measure one way and print its bytes."""
    key, way, block, decided = arguments
    settings = Settings.model_validate_json(block)
    # What is kept from building it would hide what it needs.
    runtime = started(settings, keep_memory=False)
    (case,) = [case for case in step_cases(quick=False) if case.key == key]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(runtime, Path(folder), case.num_images, settings, Path(decided))
        bytes_needed = peak(case.ways[way](place), runtime.device)
    sys.stdout.write(f"{bytes_needed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
