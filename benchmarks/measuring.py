"""One case measured: its ways in turn, what they cost in relation, and their memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.case import Case
from benchmarks.interleaved import Taken, spread
from benchmarks.peak_memory import in_a_child
from benchmarks.reference.image_files import num_workers
from benchmarks.way_process import opened
from kdci.config.params import Runtime as Settings
from kdci.training.runtime import Runtime

WARM_UP = 2
OURS = ("project", "compensated")


def measure(
    case: Case,
    runtime: Runtime,
    *,
    settings: Settings,
    decided: Path,
    repeats: int | None,
    quick: bool,
    keep_memory: bool,
) -> dict[str, Any]:
    """Return a case's times, ratios and memory.

    Args:
        case: What is measured.
        runtime: Started by the settings.
        settings: The params block `runtime`.
        decided: Folder of what the format probe has decided.
        repeats: Timings of each way, at least 2; None: as the case says.
        quick: Whether it is a small case. Its memory is that of the libraries, and not measured.
        keep_memory: Whether ways other than the baseline keep what a step frees.

    Returns:
        ``ms`` holds median and quartiles of a step by way; ``times_plain`` how many times as
        fast as the baseline this project's ways are, ``share_of_bound`` how near they are to the
        bound; ``processor_`` the same of this process's processor time, which other work on
        the machine hardly changes; ``peak_bytes`` is left out of the bound, whose search for
        the best setting grows the process.
    """
    count = case.repeats if repeats is None else repeats
    taken: dict[str, list[Taken]] = {way: [] for way in case.ways}
    with opened(
        case.key, list(case.ways), settings, decided, quick=quick, keep_memory=keep_memory
    ) as processes:
        for repeat in range(-WARM_UP, count):
            for way, process in processes.items():
                now = process.act()
                if repeat >= 0:
                    taken[way].append(now)
        formats = {
            name: kept for process in processes.values() for name, kept in process.formats.items()
        }
    times, processor = (
        {way: spread([each[clock] / case.steps for each in found]) for way, found in taken.items()}
        for clock in (0, 1)
    )
    ours = [way for way in OURS if way in times]
    return {
        "kind": case.kind,
        "method": case.method,
        "teacher": case.teacher,
        "student": case.student,
        "batch_size": case.batch_size,
        "n": count,
        "note": case.note,
        "num_workers": num_workers(runtime.threads),
        "formats": formats,
        "ms": times,
        "processor_ms": processor,
        "times_plain": ratios("plain", times, ours),
        "share_of_bound": ratios("bound", times, ours),
        "processor_times_plain": ratios("plain", processor, ours),
        "processor_share_of_bound": ratios("bound", processor, ours),
        "peak_bytes": {
            way: in_a_child(case.key, way, settings, decided)
            for way in case.ways
            if way != "bound" and not quick
        },
    }


def ratios(to: str, times: dict[str, dict[str, float]], ways: list[str]) -> dict[str, float]:
    """Return the median of one way in relation to that of each of ``ways``."""
    return {way: times[to]["median"] / times[way]["median"] for way in ways}
