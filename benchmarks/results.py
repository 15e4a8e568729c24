"""The file of results: what was measured last of everything, each with what it was measured on."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.json")
STEPS = "steps"
"""Key of the cases that are done several ways; other benchmarks have a key of their own."""

Results = dict[str, Any]


def read(path: Path) -> Results:
    """Return the results of a file; {} where there is none."""
    if not path.exists():
        return {}
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def merge(path: Path, changed: Results) -> Results:
    """Put results beside those of a file, cases of ``STEPS`` one by one; return them all."""
    results = read(path)
    steps = {**results.get(STEPS, {}), **changed.get(STEPS, {})}
    results.update(changed)
    if steps:
        results[STEPS] = steps
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return results


def today() -> str:
    """Return the date, as results carry it."""
    return time.strftime("%Y-%m-%d")
