"""Runs of stage executions: one that goes on while the stage works, or one made when it is done.

An unfinished execution is known by its work folder, which a resumed one shares; a finished one
by its artifact's path, content and params. A run that was watched becomes the finished one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from kdci.graph.node import Node
from kdci.store.artifacts import CARD
from kdci.store.hashing import hash_json
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.readings import Timing, flatten, numbers
from pipelines.tracking.reading.snapshot import Snapshot
from pipelines.tracking.reading.work import Work
from pipelines.tracking.writing.cell_runs import CellRuns
from pipelines.tracking.writing.datasets import datasets_of
from pipelines.tracking.writing.store import RunRecord, Store
from pipelines.tracking.writing.tags import (
    ARTIFACT,
    CONTENT,
    FAILURE,
    LINES,
    PARAMS_HASH,
    RUN,
    VERSION,
    WORK_KEY,
    curve_points,
    identity_tags,
    node_tags,
    points,
    provenance_tags,
    system_points,
)

_DATASET = {"num_classes", "channels", "image_size"}
"""Facts that are no results; the card has them."""


@dataclass(frozen=True)
class StageRuns:
    """Writes the runs of stage executions; ``cell_runs`` has the parents of students' runs."""

    files: Snapshot
    store: Store
    cell_runs: CellRuns

    def show_work(self, work: Work) -> None:
        """Show an unfinished execution as it stands now."""
        found = self.store.find({ARTIFACT: work.artifact, RUN: "stage", WORK_KEY: work.key})
        if found and CONTENT in found[0].tags:
            return  # it is done: the folder is about to go, or makes the same artifact again
        known = {WORK_KEY: work.key, PARAMS_HASH: hash_json(work.params)}
        record = found[0] if found else self._create(work.node, known, work.started)
        self.store.log_params(record, dict(flatten(work.params)))
        lines = f"{len(work.metrics)}+{len(work.system)}"
        if record.tags.get(LINES) != lines:
            now = time.time()
            curve = curve_points(work.metrics, Timing(now, now, {}))
            self.store.log_points(record, [*curve, *system_points(work.system)])
            self.store.set_tags(record, {LINES: lines})
        if work.reason or FAILURE in record.tags:
            self.store.set_tags(record, {FAILURE: work.reason})
        self.store.set_status(record, work.status)

    def show_finished(self, finished: Finished) -> RunRecord | None:
        """Show a finished execution; None: its stage is at work, so it may not be whole yet."""
        identity = identity_tags(finished)
        found = self.store.find({**identity, RUN: "stage"})
        if found and found[0].status == "FINISHED":
            return found[0]
        if self.files.is_running(finished.node):
            return None
        record = found[0] if found else self._watched(finished)
        if record is None:
            record = self._create(finished.node, identity, finished.timing.started)
        self._fill(record, finished)
        return record

    def amend(self, finished: Finished, record: RunRecord) -> None:
        """Add what is known later than the artifact: who ran it, DVC's hashes, its datasets."""
        self.store.log_datasets(record, list(datasets_of(finished, self.files)))
        self.store.set_tags(record, self.files.origins.tags(finished, known=record.tags))

    def end_abandoned(self) -> None:
        """End runs whose work folder went without leaving an artifact."""
        alive = {work.key for work in self.files.work}
        for record in self.store.records:
            key = record.tags.get(WORK_KEY)
            if key and key not in alive and record.status == "RUNNING":
                self.store.set_status(record, "KILLED")

    def _create(self, node: Node, tags: dict[str, str], started: float) -> RunRecord:
        cell = node.student
        parent = None if cell is None else self.cell_runs.parent(cell, started)
        tags = {**node_tags(node, self.files.layout), **tags, RUN: "stage"}
        return self.store.create(node.name, tags, started=started, parent=parent)

    def _watched(self, finished: Finished) -> RunRecord | None:
        """Return the run that showed the making of an artifact."""
        stopped = {work.key for work in self.files.work}
        candidates = [
            record
            for record in self.store.find({ARTIFACT: finished.artifact, RUN: "stage"})
            if record.tags.get(PARAMS_HASH) == finished.params_hash
            and CONTENT not in record.tags
            and record.tags.get(WORK_KEY) not in stopped
            and record.started <= finished.written + 1
        ]
        return max(candidates, key=lambda record: record.started, default=None)

    def _fill(self, record: RunRecord, finished: Finished) -> None:
        """Write a finished execution; `FINISHED` comes last and says that it is all there."""
        card, timing = finished.card, finished.timing
        tags = {**identity_tags(finished), **provenance_tags(card), **self._links(finished)}
        if FAILURE in record.tags:
            tags[FAILURE] = ""
        self.store.set_tags(record, tags)
        self.store.log_params(record, dict(flatten(finished.params)))
        curve = list(curve_points(finished.metrics, timing))
        shown = {point.key for point in curve} | finished.node.fields.keys() | _DATASET
        facts = {**numbers(card.get("facts", {})), **timing.values}
        facts = {name: value for name, value in facts.items() if name not in shown}
        last = max((point.step for point in curve), default=0)
        system = system_points(timing.system)
        self.store.log_points(record, [*curve, *points(facts, last, timing.finished), *system])
        self._log_files(record, finished)
        self.store.set_status(record, "FINISHED", ended=timing.finished)

    def _links(self, finished: Finished) -> dict[str, str]:
        """Point to the runs of what an artifact was made from."""
        links = {}
        for name, content in finished.parents.items():
            found = self.store.find({CONTENT: content, RUN: "stage"})
            if found:
                links[f"dep.{name}"] = found[0].run_id
        return links

    def _log_files(self, record: RunRecord, finished: Finished) -> None:
        """Copy the card; of a dictionary also its tensors, under a version number."""
        path = finished.node.artifact
        if finished.node.kind != "dictionary":
            self.store.copy(record, path / CARD)
            return
        for name in ("dictionary.safetensors", CARD):
            self.store.copy(record, path / name, "dictionary")
        self.store.set_tags(record, {VERSION: str(self._version(record))})

    def _version(self, record: RunRecord) -> int:
        """Number the distinct contents of a dictionary in the order this store met them."""
        versions = {
            other.tags[CONTENT]: int(other.tags[VERSION])
            for other in self.store.find({ARTIFACT: record.tags[ARTIFACT], RUN: "stage"})
            if VERSION in other.tags
        }
        return versions.get(record.tags[CONTENT], 1 + max(versions.values(), default=0))
