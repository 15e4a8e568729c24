"""Trials of `kdci sweep`'s searches, as their files tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.store.layout import Layout
from pipelines.running.workspace import is_held
from pipelines.tracking.reading.readings import numbers, read_object


@dataclass(frozen=True)
class Trial:
    """One point of a search.

    Attributes:
        search: Name of the search.
        described: What is searched, from its `search.json`.
        name: Of the trial, as `kdci promote` takes it.
        values: What was tried, by dotted params key.
        metric: Name of what it is scored by.
        curve: Score by distillation step.
        score: The last one; None: it was not scored.
        status: `running`, `complete`, `stopped` (early), `failed`, or `interrupted`.
        error: Why it failed.
        started: Unix seconds.
        finished: The same; None: it is not.
        tags: Links to other tools, the stages it ran.
        facts: Its other numbers, such as the steps done.
    """

    search: str
    described: dict[str, Any]
    name: str
    values: dict[str, Any]
    metric: str
    curve: list[tuple[int, float]]
    score: float | None
    status: str
    error: str
    started: float
    finished: float | None
    tags: dict[str, str]
    facts: dict[str, float]


def read_trials(layout: Layout) -> list[Trial]:
    """Read the trials of all searches of a preset; files that tell of none are left out."""
    at_work = is_held(layout.work / "run.lock")
    found = []
    for file in sorted((layout.work / "searches").glob("*/trials/*/trial.json")):
        try:
            described = read_object(file.parents[2] / "search.json")
            if described.get("preset") == layout.preset:
                found.append(_trial(file, described, at_work=at_work))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _trial(file: Path, described: dict[str, Any], *, at_work: bool) -> Trial:
    record = read_object(file)
    status = str(record["status"])
    if status == "running" and not at_work:
        status = "interrupted"
    score, finished = record.get("score"), record.get("finished")
    tags = {name: str(link) for name, link in dict(record.get("links") or {}).items()}
    stages = [str(stage) for stage in record.get("stages") or []]
    return Trial(
        search=str(record["search"]),
        described=described,
        name=str(record["name"]),
        values=dict(record["values"]),
        metric=str(record["metric"]),
        curve=[(int(step), float(value)) for step, value in record.get("curve") or []],
        score=None if score is None else float(score),
        status=status,
        error=str(record.get("error") or ""),
        started=float(record["started"]),
        finished=None if finished is None else float(finished),
        tags={**tags, "dvc.stages": " ".join(stages)},
        facts=numbers({name: record.get(name) for name in ("number", "steps", "num_steps")}),
    )
