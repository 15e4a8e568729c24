"""Runs of searches, as their files tell: a parent for each, a child for each of its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kdci.store.layout import Layout
from pipelines.running.workspace import is_held
from pipelines.searching.results import (
    FOLDER,
    SEARCH_FILE,
    TRIAL_FILE,
    TrialRecord,
    best_of,
)
from pipelines.tracking.reading.readings import flatten, numbers, read_object
from pipelines.tracking.writing.store import RunRecord, Store
from pipelines.tracking.writing.tags import (
    FAILURE,
    PRESET,
    RUN,
    SEARCH,
    TRIAL,
    Point,
    field_tags,
)

OUTCOME = "kdci.outcome"
SHOWN = "kdci.trial_shown"
_AXES = ("teacher", "student", "method", "variant")
_ASKED = ("criterion", "metric", "space", "scheduler", "searcher", "seed", "seeds", "pool_seeds")
_STATUS = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "stopped": "FINISHED",  # early, by the scheduler: it did all that was asked of it
    "failed": "FAILED",
}
_FACTS = ("number", "steps", "num_steps")


def show_searches(layout: Layout, store: Store) -> None:
    """Bring the runs of a preset's searches up to date; files that tell of none are left out."""
    at_work = is_held(layout.work / "run.lock")
    trials: dict[str, list[TrialRecord]] = {}
    described: dict[str, dict[str, Any]] = {}
    for file in sorted((layout.work / FOLDER).glob(f"*/trials/*/{TRIAL_FILE}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            search = read_object(file.parents[2] / SEARCH_FILE)
            if search.get("preset") == layout.preset:
                trial = TrialRecord.model_validate_json(file.read_bytes())
                if trial.status == "running" and not at_work:
                    trial.status = "interrupted"
                trials.setdefault(trial.search, []).append(trial)
                described[trial.search] = search
    for name, found in trials.items():
        axes = {axis: described[name][axis] for axis in _AXES if axis in described[name]}
        tags = {SEARCH: name, PRESET: layout.preset, **field_tags(axes)}
        started = min(trial.started for trial in found)
        parent = store.ensure(name, {SEARCH: name, RUN: "search"}, tags, started=started)
        asked = {key: described[name][key] for key in _ASKED if key in described[name]}
        store.log_params(parent, dict(flatten(asked)))
        for trial in found:
            _show(trial, parent, tags, store)
        _show_best(parent, found, store)


def _show(trial: TrialRecord, parent: RunRecord, tags: Mapping[str, str], store: Store) -> None:
    known = {TRIAL: trial.name, RUN: "trial"}
    record = store.ensure(trial.name, known, tags, started=trial.started, parent=parent)
    # What changes whenever there is more to show.
    state = json.dumps([trial.status, len(trial.curve), trial.score, trial.error])
    if record.tags.get(SHOWN) != state:
        store.log_params(record, dict(flatten(trial.values)))
        ended = trial.finished or trial.started
        curve = [Point(trial.metric, value, step, int(ended * 1000)) for step, value in trial.curve]
        store.log_points(record, curve)
        facts = {name: getattr(trial, name) for name in _FACTS} | {"score": trial.score}
        store.set_values(record, numbers(facts))
        links = {**trial.links, "dvc.stages": " ".join(trial.stages)}
        store.set_tags(record, {**links, OUTCOME: trial.status, FAILURE: trial.error})
        store.set_tags(record, {SHOWN: state})  # last: it says that all of this is there
    store.set_status(record, _STATUS.get(trial.status, "KILLED"), ended=trial.finished)


def _show_best(parent: RunRecord, trials: list[TrialRecord], store: Store) -> None:
    best = best_of(trials)
    if best is not None:
        store.set_values(parent, {"best_score": best.score or 0.0, "num_trials": len(trials)})
        store.set_tags(parent, {"kdci.best_trial": best.name})
    states = {trial.status for trial in trials}
    status = "RUNNING" if "running" in states else "FINISHED"
    if "interrupted" in states:
        status = "KILLED"
    ended = max(trial.finished or trial.started for trial in trials)
    store.set_status(parent, status, ended=ended)
