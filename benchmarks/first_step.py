"""A stage as a process that ends where its first step would begin, and tells when that was.

    python -m benchmarks.first_step SECONDS stages.distill --variant kdci ...

SECONDS is the clock when the process was started. What comes before the first step is all there:
imports, params, hashing what the stage is made from, networks, the search for the format. A
step is an optimiser's in a loop, or the first batch of images that is predicted on; the report
has none, and ends where it would begin to read artifacts.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

WHERE: dict[str, tuple[tuple[str, str], ...]] = {
    "stages.teacher": (("stages.session", "Session.run_loop"),),
    "stages.substitute": (("stages.session", "Session.run_loop"),),
    "stages.distill": (("stages.session", "Session.run_loop"),),
    "stages.dictionary": (("kdci.training.evaluation", "image_batches"),),
    "stages.evaluate": (("kdci.training.evaluation", "image_batches"),),
    "stages.report": (("stages.report", "gather"),),
}
"""By module of a stage: the function whose call is the first step."""


def main(arguments: Sequence[str]) -> int:
    """Run the stage as far as that; print seconds by the clock, and seconds computed, till then."""
    started, module, *rest = arguments

    def tell(*_: Any, **__: Any) -> NoReturn:
        sys.stdout.write(f"{time.time() - float(started):.4f} {time.process_time():.4f}\n")
        sys.stdout.flush()
        os._exit(0)  # nothing of the stage goes on: neither its result nor its record of a failure

    stage = importlib.import_module(module)
    name_of_stage = module.removeprefix("stages.")
    for place, name in WHERE[module]:
        _replace(importlib.import_module(place), name, tell)
    code: int = importlib.import_module("stages.main").main(name_of_stage, stage.run, rest)
    sys.stderr.write(f"{module} ended before its first step\n")
    return code or 1


def _replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, last, function)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
