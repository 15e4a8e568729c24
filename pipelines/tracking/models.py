"""What of an experiment the model registry holds: dictionaries, and one student of each arm.

The first replicate of each arm stands for it, never the one with the best test score: choosing by
that is what `set_champion` does on request, under an alias of its own.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.errors import KdciError, UserError
from kdci.store.layout import Cell
from pipelines.tracking.export import FOLDER, save_model
from pipelines.tracking.reading.files import Finished
from pipelines.tracking.reading.origins import DEPS_MD5, OUT_MD5
from pipelines.tracking.reading.readings import numbers
from pipelines.tracking.reading.snapshot import Snapshot
from pipelines.tracking.registry import FORM, Registry
from pipelines.tracking.writing.store import RunRecord, Store
from pipelines.tracking.writing.tags import CELL, CONTENT, RUN, identity_tags

CARD_SHA256 = "kdci.card_sha256"
EXPORT_FAILURE = "kdci.export_failure"
CHAMPION = "champion"
SECONDS = 60.0
"""How long one pass may export students; the next goes on."""
_SCORES = ("accuracy", "agreement_backbone")


class Models:
    """Fills the registry.

    Args:
        files: The files.
        store: The store, with the runs of these files in it.

    Attributes:
        added: Versions added.
        warnings: What could not be registered, one line each.
    """

    def __init__(self, files: Snapshot, store: Store) -> None:
        self._files = files
        self._store = store
        self._prefix = f"kdci-{files.layout.preset}"
        self.added = 0
        self.warnings: list[str] = []

    def register(self) -> None:
        """Add the versions that are missing, and let the aliases point at the current ones."""
        self._registry = Registry(self._store, self._files.layout.preset)
        deadline = time.monotonic() + SECONDS
        grid, waiting = self._files.graph.params.grid, 0
        first = grid.pool_seeds[0], grid.seeds[0]
        for finished in self._files.finished.values():
            record = self._run_of(finished)
            if record is None:
                continue
            cell = finished.node.student
            if finished.node.kind == "dictionary":
                self._register_dictionary(finished, record)
            elif cell is not None and (cell.pool_seed, cell.seed) == first:
                waiting += not self._register_arm(finished, record, cell, deadline)
        if waiting:
            self.warnings.append(
                f"{waiting} students wait for their place in the registry (`kdci sync` goes on)"
            )

    def set_champion(self, cell: Cell) -> Any:
        """Register the student of ``cell``, whichever, and let `champion` point at it.

        Raises:
            UserError: There is no current student of this cell.
        """
        self._registry = Registry(self._store, self._files.layout.preset)
        student = self._files.student(cell)
        record = None if student is None else self._run_of(student)
        if student is None or record is None:
            what = "has no student made with the current params"
            raise UserError(cell.name, what, "run `dvc repro`")
        version = self._student_version(student, record, cell)
        self._registry.point(CHAMPION, version)
        return version

    def _run_of(self, finished: Finished) -> RunRecord | None:
        """Return the run of an artifact; None: it is not whole, or was made with other params."""
        if not self._files.is_current(finished.node):
            return None
        found = self._store.find({**identity_tags(finished), RUN: "stage"})
        return found[0] if found and found[0].status == "FINISHED" else None

    def _register_dictionary(self, finished: Finished, record: RunRecord) -> None:
        node = finished.node
        other, teacher = ["other"] if node.of_other else [], str(node.point["teacher"])
        name = "-".join([self._prefix, *other, teacher, node.method, "dictionary"])
        version = self._registry.find(name, finished.content, "dictionary")
        if version is None:
            about = f"Confounder dictionary of {finished.artifact}: safetensors and card."
            tags = {**self._tags(finished), FORM: "dictionary"}
            version = self._registry.add(
                name, folder="dictionary", run_id=record.run_id, tags=tags, about=about
            )
            self.added += 1
        self._update(version, finished, record)
        seed = node.point["pool_seed"]
        self._registry.point(f"pool{seed}", version)
        if seed == self._files.graph.params.grid.pool_seeds[0]:
            self._registry.point("current", version)

    def _register_arm(
        self, student: Finished, record: RunRecord, cell: Cell, deadline: float
    ) -> bool:
        """Register an arm's student; False: the time is up."""
        known = self._registry.find(self._model_of(cell), student.content, self._form(cell))
        if known is None and time.monotonic() > deadline:
            return False
        if known is None and EXPORT_FAILURE in record.tags:
            return True
        try:
            version = self._student_version(student, record, cell)
        except KdciError as error:
            self.warnings.append(str(error))
            self._store.set_tags(record, {EXPORT_FAILURE: str(error)})
            return True
        self._registry.point(cell.variant, version)
        return True

    def _model_of(self, cell: Cell) -> str:
        return "-".join([self._prefix, cell.teacher, cell.student, cell.method])

    def _form(self, cell: Cell) -> str:
        """Tell what a student answers with once it is deployed."""
        compensated = ARMS[cell.variant].compensated
        return str(self._files.graph.params.evaluate.deploy) if compensated else "backbone"

    def _student_version(self, student: Finished, record: RunRecord, cell: Cell) -> Any:
        """Return the version of a student, exported if there is none."""
        name, form = self._model_of(cell), self._form(cell)
        version = self._registry.find(name, student.content, form)
        if version is None:
            from kdci.exporting.graph import trace
            from kdci.models.students import load_student

            folder = FOLDER if form == "backbone" else f"{FOLDER}-{form}"
            artifact = student.node.artifact
            with tempfile.TemporaryDirectory(prefix="kdci-export-") as scratch:
                written = Path(scratch) / folder
                facts, subject = student.card["facts"], str(artifact)
                graph = trace(load_student(artifact, deploy=form), facts, subject=subject)
                save_model(graph, written, run_id=record.run_id, subject=subject)
                self._store.copy(record, written)
            tags = {**self._tags(student), FORM: form, CELL: cell.name}
            about = (
                f"{arm_title(cell.variant)} student of {cell.name}, {form}. Input: float32 images "
                "(N, C, H, W) in [0, 1]; normalisation is inside. Output: logits."
            )
            version = self._registry.add(
                name, folder=folder, run_id=record.run_id, tags=tags, about=about
            )
            self.added += 1
        self._update(version, student, record)
        evaluation = self._files.current_evaluation(cell)
        if evaluation is not None:
            scores = numbers({name: evaluation.rows[cell].get(name) for name in _SCORES})
            self._registry.set_tags(version, {name: f"{v:.6g}" for name, v in scores.items()})
        return version

    def _tags(self, finished: Finished) -> dict[str, str]:
        revision = finished.card.get("code", {}).get("revision")
        commit = {"git.commit": str(revision)} if revision else {}
        return {CONTENT: finished.content, "dvc.stage": finished.node.name, **commit}

    def _update(self, version: Any, finished: Finished, record: RunRecord) -> None:
        """Add the card's hash and what is known later than a version: DVC's hashes."""
        if version.run_id != record.run_id:
            return  # the same content, made again with other params: this one tells of the first
        known = {name: record.tags[name] for name in (OUT_MD5, DEPS_MD5) if name in record.tags}
        card = str(finished.card["card_sha256"])
        self._registry.set_tags(version, {CARD_SHA256: card, **known})
