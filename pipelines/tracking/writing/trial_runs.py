"""Runs of searches: a parent for each, and a child for each of its trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from kdci.store.layout import Layout
from pipelines.tracking.reading.readings import flatten
from pipelines.tracking.reading.trials import Trial
from pipelines.tracking.writing.record import SEARCH, TRIAL, Point, RunRecord
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.tags import FAILURE, PRESET, RUN, field_tags

OUTCOME = "kdci.outcome"
SHOWN = "kdci.trial_shown"
_AXES = ("teacher", "student", "method", "variant")
_STATUS = {
    "running": "RUNNING",
    "complete": "FINISHED",
    "stopped": "FINISHED",  # early, by the scheduler: it did all that was asked of it
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def show_trials(trials: Iterable[Trial], layout: Layout, store: Store) -> None:
    """Bring the runs of searches up to date.

    Args:
        trials: All of them.
        layout: Where the files are.
        store: The store, freshly read.
    """
    by_search: dict[str, list[Trial]] = {}
    for trial in trials:
        by_search.setdefault(trial.search, []).append(trial)
    for name, of_search in by_search.items():
        parent = _parent(name, of_search, layout, store)
        for trial in of_search:
            _show(trial, parent, layout, store)
        _show_best(parent, of_search, store)


def _parent(name: str, trials: list[Trial], layout: Layout, store: Store) -> RunRecord:
    found = store.find({SEARCH: name, RUN: "search"})
    if found:
        return found[0]
    described = trials[0].described
    tags = {RUN: "search", SEARCH: name, PRESET: layout.preset, **_axes(described)}
    started = min(trial.started for trial in trials)
    record = store.create(name, tags, started=started)
    asked = ("criterion", "metric", "space", "scheduler", "searcher", "seed", "seeds", "pool_seeds")
    kept = {key: described[key] for key in asked if key in described}
    store.log_params(record, dict(flatten(kept)))
    return record


def _show(trial: Trial, parent: RunRecord, layout: Layout, store: Store) -> None:
    found = store.find({TRIAL: trial.name, RUN: "trial"})
    tags = {RUN: "trial", TRIAL: trial.name, SEARCH: trial.search, PRESET: layout.preset}
    tags |= _axes(trial.described)
    record = (
        found[0] if found else store.create(trial.name, tags, started=trial.started, parent=parent)
    )
    state = _state(trial)
    if record.tags.get(SHOWN) != state:
        store.log_params(record, dict(flatten(trial.values)))
        ended = trial.finished or trial.started
        curve = [Point(trial.metric, value, step, int(ended * 1000)) for step, value in trial.curve]
        store.log_points(record, curve)
        values = dict(trial.facts)
        if trial.score is not None:
            values["score"] = trial.score
        store.set_values(record, values)
        store.set_tags(record, {**trial.tags, OUTCOME: trial.status, FAILURE: trial.error})
        store.set_tags(record, {SHOWN: state})  # last: it says that all of this is there
    store.set_status(record, _STATUS.get(trial.status, "KILLED"), ended=trial.finished)


def _state(trial: Trial) -> str:
    """Return what changes whenever there is more to show of a trial."""
    return json.dumps([trial.status, len(trial.curve), trial.score, trial.error])


def _show_best(parent: RunRecord, trials: list[Trial], store: Store) -> None:
    scored = [trial for trial in trials if trial.status == "complete" and trial.score is not None]
    if scored:
        best = max(scored, key=lambda trial: trial.score or 0.0)
        store.set_values(parent, {"best_score": best.score or 0.0, "num_trials": len(trials)})
        store.set_tags(parent, {"kdci.best_trial": best.name})
    states = {trial.status for trial in trials}
    status = "RUNNING" if "running" in states else "FINISHED"
    if "interrupted" in states:
        status = "KILLED"
    ended = max((trial.finished or trial.started for trial in trials), default=None)
    store.set_status(parent, status, ended=ended)


def _axes(described: Mapping[str, Any]) -> dict[str, str]:
    return field_tags({axis: described[axis] for axis in _AXES if axis in described})
