"""`python -m pipelines.checking.estimating`: one measurement, asked and answered in JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from kdci.config.params import Params
from kdci.errors import KdciError
from pipelines.checking.estimating.machine import Machine
from pipelines.checking.estimating.subjects import subject_of


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Measure what is asked.

    Args:
        question: ``params``; ``formats``, a folder; ``subject``, its fields; ``budgets``.

    Raises:
        KdciError: It can not be done here: the device is not there, or the method does not fit.
    """
    started = time.time() - psutil.Process().create_time()  # imports, and whatever came before
    with tempfile.TemporaryDirectory() as folder:
        params = Params.model_validate_json(json.dumps(question["params"]))
        machine = Machine(params, Path(folder), Path(question["formats"]))
        facts = {"start": started, "hardware": machine.describe(), "memory": machine.memory()}
        subject = subject_of(question["subject"])
        return {**facts, **subject.measure(machine, question["budgets"])}


if __name__ == "__main__":
    try:
        found = answer(json.load(sys.stdin))
    except (KdciError, MemoryError, RuntimeError) as error:
        found = {"error": (str(error).splitlines() or ["out of memory"])[0][:200]}
    json.dump(found, sys.stdout)
