"""`python -m pipelines.checking.estimating`: one measurement, asked and answered in JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.errors import KdciError
from pipelines.checking.estimating.backbones import measure_backbone
from pipelines.checking.estimating.machine import Machine, seconds_since_start
from pipelines.checking.estimating.made_up import decoding_seconds
from pipelines.checking.estimating.pairs import Pair, measure_pair

_DECODING_SECONDS = 0.5


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Measure what is asked.

    Args:
        question: ``params``; ``formats``, a folder; and either ``backbone`` with ``trained``, or
            ``pair`` with ``budgets``.

    Raises:
        KdciError: It can not be done here: the device is not there, or the method does not fit.
    """
    started = seconds_since_start()
    with tempfile.TemporaryDirectory() as folder:
        params = Params.model_validate_json(json.dumps(question["params"]))
        machine = Machine(params, Path(folder), Path(question["formats"]))
        facts = {"start": started, "hardware": machine.describe(), "memory": machine.memory()}
        if "backbone" in question:
            found = measure_backbone(machine, question["backbone"], trained=question["trained"])
            decoding = decoding_seconds(machine.spec, seconds=_DECODING_SECONDS)
            return {**facts, **found, "decoding": decoding}
        pair = Pair(**{**question["pair"], "arms": tuple(question["pair"]["arms"])})
        return {**facts, **measure_pair(machine, pair, question["budgets"])}


if __name__ == "__main__":
    try:
        found = answer(json.load(sys.stdin))
    except (KdciError, MemoryError, RuntimeError) as error:
        found = {"error": (str(error).splitlines() or ["out of memory"])[0][:200]}
    json.dump(found, sys.stdout)
