"""A trial as Ray Tune drives it, and the driver's records of what it hears.

Tune keeps no checkpoints of ours: a trial whose worker died is set up again in the same root, and
its stage goes on from its own checkpoint. Import it late: Ray takes seconds.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from kdci.graph.node import KINDS
from kdci.graph.standing import card_at
from kdci.store.layout import Layout
from pipelines.searching.results import (
    Event,
    Search,
    TrialRecord,
    read_search,
    trial_folder,
    trial_id_of,
    write_trial,
)
from pipelines.searching.trial import SearchStoppedError, Trial, TrialFailedError


class SearchTrial(tune.Trainable):  # type: ignore[misc,unused-ignore]
    """A trial in a worker: every step of Tune's is one more score."""

    def setup(self, config: dict[str, Any]) -> None:
        """Open the trial; its stages start with the first step."""
        layout = Layout(config["guard"].root, config["preset"])
        search = read_search(layout, config["search"])
        self._run = Trial(layout, search, config["values"], config["guard"])
        self._points = self._run.points()

    def step(self) -> dict[str, Any]:
        """Return the next score; a failure that would repeat itself is no reason to retry."""
        try:
            point = next(self._points)
        except TrialFailedError as error:
            return {"done": True, "failure": str(error)}
        except SearchStoppedError:
            return {"done": True, "interrupted": True}
        return {**point, "done": point["complete"]}

    def cleanup(self) -> None:
        """Have the stage at work save its state and end."""
        self._run.stop()


class RecordWriter(tune.Callback):  # type: ignore[misc,unused-ignore]
    """Writes the trials' records, in the driver: one writer of all; ``on_event`` hears of each."""

    def __init__(self, layout: Layout, search: Search, on_event: Event) -> None:
        self._layout = layout
        self._search = search
        self._on_event = on_event
        self._records: dict[str, TrialRecord] = {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Begin a record; a trial whose worker died, started again, has one."""
        if trial.trial_id not in self._records:
            self._write(self._record(trial), "started")

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a score."""
        if "score" not in result:
            return
        record = self._record(trial)
        record.add_point(int(result["steps"]), float(result["score"]))
        record.num_steps = int(result["num_steps"])
        self._write(record, "scored")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note how a trial ended: by itself, early, or not yet."""
        last = trial.last_result or {}
        if last.get("interrupted"):
            return
        if last.get("failure"):
            self._end(trial, "failed", str(last["failure"]))
        else:
            self._end(trial, "complete" if last.get("complete") else "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Note that a trial's worker failed too often."""
        lines = str(trial.get_pickled_error() or trial.get_error() or "").strip().splitlines()
        self._end(trial, "failed", lines[-1].strip() if lines else "its worker died")

    def _record(self, trial: Any) -> TrialRecord:
        if trial.trial_id not in self._records:
            search, config = self._search, trial.config
            record = TrialRecord(
                search=search.name,
                trial_id=trial_id_of(config["values"]),
                number=config["number"],
                values=dict(config["values"]),
                suggested=dict(config["suggested"]),
                criterion=search.criterion,
                metric=search.metric,
                stages=[call.name for call in search.stages],
                started=time.time(),
                code=dict(search.code),
                upstream=dict(search.upstream),
                given=dict(search.given),
                links={"ray.trial_id": trial.trial_id, "ray.experiment": search.name},
            )
            self._records[trial.trial_id] = record
        return self._records[trial.trial_id]

    def _end(self, trial: Any, status: str, error: str = "") -> None:
        record = self._record(trial)
        record.status, record.error, record.finished = status, error, time.time()
        self._write(record, "ended")

    def _write(self, record: TrialRecord, event: str) -> None:
        _read_cards(self._layout, self._search, record)
        write_trial(self._layout, record)
        self._on_event(record, event)


def _read_cards(layout: Layout, search: Search, record: TrialRecord) -> None:
    """Note the students that are there, and what cards say of how they were made."""
    root = trial_folder(layout, search.name, record.trial_id)
    record.students = []
    for call in search.stages:
        card = card_at(root / call.artifact, KINDS[call.stage])
        if card is None:
            continue
        record.code[call.name] = card["code"]["hash"]
        if call.student is not None:
            record.students.append(call.artifact)
            record.threads = card["runtime"]["threads"]
