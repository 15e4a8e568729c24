"""Measurements, each in a process of its own and kept by what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdci.config.params import Params
from kdci.errors import StorageError
from kdci.graph.code import Code, Sources
from kdci.store.artifacts import replace_file
from kdci.store.hashing import hash_json
from kdci.store.layout import Layout
from kdci.substitution.registry import module_of
from kdci.training.runtime import processor
from pipelines.checking.estimating.subjects import Pair, Subject

_BLOCKS = (
    "runtime",
    "backbone",
    "data",
    "teacher",
    "dictionary",
    "compensation",
    "intervention",
)
"""Params that a measurement depends on, beside those of its method."""
OUT_OF_TIME = "no time was left"
_CODE = Code("measuring", ("pipelines.checking.estimating.__main__",))


@dataclass
class Measurements:
    """What was measured; what was not is missing in it.

    Attributes:
        found: Answers of ``pipelines.checking.estimating.__main__``, by side and subject.
        missing: Why something was not measured, by the same.
    """

    found: dict[tuple[str, Subject], dict[str, Any]] = field(default_factory=dict)
    missing: dict[tuple[str, Subject], str] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """Seconds that a stage's process takes before its work begins."""
        return float(median([one["start"] for one in self.found.values()] or [0.0]))

    @property
    def hardware(self) -> str:
        """What was measured on, in words."""
        return next((str(one["hardware"]) for one in self.found.values()), "nothing measured")

    @property
    def memory(self) -> int:
        """Memory of what was measured on; 0: nothing was."""
        return next((int(one["memory"]) for one in self.found.values()), 0)

    def of(self, side: str, kind: type[Subject], **facts: str) -> dict[str, Any] | None:
        """Return what was measured of the first network or pair that has ``facts``."""
        for (own, subject), one in self.found.items():
            if own == side and isinstance(subject, kind) and facts.items() <= vars(subject).items():
                return one
        return None


def measure(
    subjects: Iterable[tuple[str, Subject]],
    sides: dict[str, Params],
    layout: Layout,
    *,
    budgets: tuple[float, ...],
    seconds: float,
    tell: Callable[[str], None],
) -> Measurements:
    """Measure what was not measured before.

    Args:
        subjects: What, each with the name of its side.
        sides: Params by side.
        layout: The project.
        budgets: Which the seconds are drawn out to.
        seconds: After so many no further measurement begins.
        tell: Told what begins.
    """
    subjects, began = list(subjects), time.monotonic()
    found, sources = Measurements(), Sources(layout.root)
    for number, (side, subject) in enumerate(subjects, 1):
        params = sides[side]
        file = _file(layout, sources, params, subject, budgets)
        answer = _kept(file)
        if answer is None and time.monotonic() - began > seconds:
            found.missing[side, subject] = OUT_OF_TIME
            continue
        if answer is None:
            tell(f"measuring {number} of {len(subjects)}: {subject}")
            answer = _ask(layout, params, subject, budgets)
            if "error" not in answer:
                with suppress(StorageError):  # it is measured again next time
                    replace_file(file, json.dumps(answer, indent=1).encode())
        if "error" in answer:
            found.missing[side, subject] = answer["error"]
        else:
            found.found[side, subject] = answer
    return found


def _file(
    layout: Layout,
    sources: Sources,
    params: Params,
    subject: Subject,
    budgets: tuple[float, ...],
) -> Path:
    """Return where an answer is kept: named by all that it depends on."""
    keys, devices = [*_BLOCKS], range(torch.cuda.device_count())
    code = [sources.fingerprint(_CODE)]
    if isinstance(subject, Pair):
        base = params.base_of(subject.method)
        keys += [f"methods.{base}", f"recipes.{base}"]
        code.append(sources.fingerprint(Code(f"measuring {base}", (module_of(base),))))
    facts = {
        "subject": asdict(subject),
        "params": params.blocks(*keys),
        "budgets": budgets,
        "code": code,
        "torch": torch.__version__,
        "machine": [processor(), os.cpu_count(), *map(torch.cuda.get_device_name, devices)],
    }
    return layout.work / "measured" / f"{hash_json(facts)[:16]}.json"


def _ask(
    layout: Layout, params: Params, subject: Subject, budgets: tuple[float, ...]
) -> dict[str, Any]:
    """Have a process of its own measure a subject."""
    question = {
        "params": params.model_dump(mode="json", by_alias=True),
        "formats": str(layout.formats),
        "subject": asdict(subject),
        "budgets": budgets,
    }
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.checking.estimating"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        cwd=layout.root,
    )
    try:
        return dict(json.loads(done.stdout))
    except ValueError:  # killed for its memory, for one
        ended = f"its process ended with {done.returncode}"
        return {"error": (done.stderr.strip().splitlines()[-1:] or [ended])[0][:200]}


def _kept(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
