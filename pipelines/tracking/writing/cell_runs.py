"""Runs of cells: the parent of what belongs to a cell, and its rows of evaluations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kdci.store.layout import Cell
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.readings import flatten, numbers
from pipelines.tracking.reading.snapshot import Snapshot
from pipelines.tracking.writing.store import RunRecord, Store
from pipelines.tracking.writing.tags import (
    ARM,
    BUDGET,
    CELL,
    PAIR,
    PARENT,
    PRESET,
    RUN,
    curve_points,
    field_tags,
    identity_tags,
    node_tags,
    points,
    provenance_tags,
)

CURVE = ("accuracy_backbone", "accuracy_compensated", "agreement_backbone", "agreement_compensated")
DIFFERENCES = {
    "accuracy": "gain_over_vanilla",
    "agreement_backbone": "agreement_over_vanilla",
    "seconds": "seconds_over_vanilla",
}
"""What is compared with the vanilla student of the same seeds, scores in points."""
DIGITS = 4
"""Decimals of differences, which binary fractions would fill up."""
_COPIED = ("dep.", "prefect.", "ray.", "dvc.out", "dvc.deps", "kdci.runner")
"""Tags of a student's run that its cell repeats."""
FINAL = {"accuracy", "teacher_accuracy", "num_steps", *CURVE}


@dataclass(frozen=True)
class CellRuns:
    """Writes the runs of cells of ``files`` to a ``store`` that is freshly read."""

    files: Snapshot
    store: Store

    def parent(self, cell: Cell, started: float) -> RunRecord:
        """Return the parent run of ``cell``; it is made when it is first asked for."""
        known = {CELL: cell.name, RUN: "cell"}
        tags = {PRESET: self.files.layout.preset, **field_tags(cell.asdict())}
        tags |= {PAIR: f"{cell.teacher}/{cell.student}", ARM: f"{cell.method}/{cell.variant}"}
        # Tables cut long names: what tells cells apart comes first.
        name = f"{cell.method}/{cell.variant}/{cell.replicate} ({cell.teacher}/{cell.student})"
        record = self.store.ensure(name, known, tags, started=started)
        self.store.log_params(record, {name: str(v) for name, v in cell.asdict().items()})
        return record

    def show_scores(self, evaluation: Finished, shown: RunRecord) -> None:
        """Show each row of an evaluation, whose own run is ``shown``, below its cell."""
        for cell, row in evaluation.rows.items():
            if self.files.layout.student(cell) in self.files.graph.by_artifact:
                self._show_score(evaluation, cell, row, shown)

    def show(self, cell: Cell) -> None:
        """Let the parent show the newest student and score of its cell."""
        student = self.files.student(cell)
        attempts = [one for one in self.files.work if one.node.student == cell]
        if student is None and not attempts:
            return
        started = attempts[0].started if attempts else time.time()
        record = self.parent(cell, started)
        status: str = attempts[-1].status if attempts else "SCHEDULED"
        ended = None
        if any(one.status == "RUNNING" for one in attempts):
            status = "RUNNING"
        elif student is not None:
            self._tag_student(record, student)
            status, scored = "SCHEDULED", self.files.current_evaluation(cell)
            if scored is not None:
                values = self._final_values(cell, scored.rows[cell])
                values |= self._differences(cell, values, scored)
                record = self._set_final(record, cell, values)
                status, ended = "FINISHED", scored.timing.finished
        self.store.set_status(record, status, ended=ended)

    def _show_score(
        self, evaluation: Finished, cell: Cell, row: Mapping[str, Any], shown: RunRecord
    ) -> None:
        timing = evaluation.timing
        parent = self.parent(cell, timing.started)
        known = {**identity_tags(evaluation), RUN: "score", PARENT: parent.run_id}
        tags = node_tags(evaluation.node, self.files.layout) | field_tags(cell.asdict())
        tags |= provenance_tags(evaluation.card) | {"dep.evaluation": shown.run_id}
        tags[BUDGET] = f"{row.get('budget', 1.0):g}"
        record = self.store.ensure(evaluation.node.name, known, tags, started=timing.started)
        if record.status == "FINISHED":
            return
        curve = [
            {"step": point["step"], **numbers({key: point.get(key) for key in CURVE})}
            for point in evaluation.curves.get(cell, [])
        ]
        values = self._final_values(cell, row)
        final = points(values, int(values.get("num_steps", 0)), timing.finished)
        self.store.log_params(record, dict(flatten(evaluation.params)))
        self.store.log_points(record, [*curve_points(curve, timing), *final])
        self.store.set_status(record, "FINISHED", ended=timing.finished)

    def _final_values(self, cell: Cell, row: Mapping[str, Any]) -> dict[str, float]:
        """Return a cell's results and costs; seconds are those of distillation alone."""
        values = numbers({name: row.get(name) for name in FINAL})
        student = self.files.student(cell)
        measured = {} if student is None else student.timing.values
        if "loop_seconds" in measured:
            values["seconds"] = measured["loop_seconds"]
        if "peak_memory_bytes" in measured:
            values["peak_memory_megabytes"] = measured["peak_memory_bytes"] / 1e6
        return values

    def _differences(
        self, cell: Cell, mine: Mapping[str, float], scored: Finished
    ) -> dict[str, float]:
        """Return what an arm adds to the vanilla student that shares its seeds, and its price."""
        twin = replace(cell, variant="vanilla")
        if twin == cell or twin not in scored.rows:
            return {}
        theirs = self._final_values(twin, scored.rows[twin])
        return {
            name: round(mine[key] - theirs[key], DIGITS)
            for key, name in DIFFERENCES.items()
            if key in mine and key in theirs
        }

    def _tag_student(self, record: RunRecord, student: Finished) -> None:
        newest = {"kdci.student_content": student.content, **provenance_tags(student.card)}
        newest[BUDGET] = f"{student.params.get('budget', 1.0):g}"
        shown = self.store.find({**identity_tags(student), RUN: "stage"})
        if shown:
            gone = {name: "" for name in record.tags if name.startswith(_COPIED)}
            tags = {name: tag for name, tag in shown[0].tags.items() if name.startswith(_COPIED)}
            newest |= {**gone, **tags, "dep.student": shown[0].run_id}
        self.store.set_tags(record, newest)

    def _set_final(self, record: RunRecord, cell: Cell, values: dict[str, float]) -> RunRecord:
        """Show ``values``; a run with one too many gives way, for MLflow never removes a metric."""
        removable = FINAL | ({"gain_over_vanilla"} if "accuracy" not in values else set())
        if record.metrics.keys() & removable - values.keys():
            children = self.store.find({PARENT: record.run_id})
            kept = {k: v for k, v in record.tags.items() if not k.startswith("mlflow.")}
            self.store.delete(record)
            fresh = self.parent(cell, record.started)
            self.store.set_tags(fresh, kept)
            for child in children:
                self.store.set_tags(child, {PARENT: fresh.run_id})
            record = fresh
        self.store.set_values(record, values)
        return record
