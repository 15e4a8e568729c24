"""All that ``python -m benchmarks`` measures, by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import dictionary_building, inversion_step, kd_step
from benchmarks.case import Case

CASES: dict[str, Callable[..., list[Case]]] = {
    "kd_step": kd_step.cases,
    "inversion_step": inversion_step.cases,
    "dictionary_building": dictionary_building.cases,
}
"""Work that is done several ways, each returned by ``cases(quick=...)``."""

MODULES = ("bank_sampling", "pool_scoring", "start_up", "compensation_cost")
"""Benchmarks that are modules of their own, with ``run(quick)``."""

NAMES = (*CASES, *MODULES)


def step_cases(*, quick: bool) -> list[Case]:
    """Return every case of ``CASES``."""
    return [case for cases in CASES.values() for case in cases(quick=quick)]


def run_module(name: str, *, quick: bool, **places: Path | None) -> dict[str, Any]:
    """Return what a benchmark of ``MODULES`` measures, a dict that fits into JSON.

    Args:
        name: Of the module.
        quick: Whether it is only to be seen that it runs.
        places: Where `pool_scoring` finds its ``data`` and its ``teacher``.
    """
    run = importlib.import_module(f"benchmarks.{name}").run
    result: dict[str, Any] = run(quick, **(places if name == "pool_scoring" else {}))
    return result
