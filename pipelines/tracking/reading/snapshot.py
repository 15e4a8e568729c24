"""All files of an experiment at one moment, and what they still lack."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from kdci.config.params import Params
from kdci.errors import KdciError
from kdci.store.hashing import hash_json
from kdci.store.layout import Cell, Layout
from pipelines.tracking.reading.files import (
    Finished,
    Report,
    Slot,
    read_finished,
    read_report,
    slots,
)
from pipelines.tracking.reading.origins import Origins, read_origins
from pipelines.tracking.reading.trials import Trial, read_trials
from pipelines.tracking.reading.work import Work, read_work

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Snapshot:
    """What the files say; keys are artifact paths relative to the project folder.

    Attributes:
        layout: Where the files are.
        params: The current params.
        slots: The artifacts that the grid asks for, each after those it is made from.
        work: Unfinished executions, the oldest first.
        finished: The artifacts that are there and whole.
        report: The report.
        origins: Who made the artifacts.
        trials: Trials of searches, those of one search together.
        warnings: Damaged files that were left out, one line each.
    """

    layout: Layout
    params: Params
    slots: dict[str, Slot]
    work: list[Work] = field(default_factory=list)
    finished: dict[str, Finished] = field(default_factory=dict)
    report: Report | None = None
    warnings: list[str] = field(default_factory=list)
    origins: Origins = field(default_factory=Origins)
    trials: list[Trial] = field(default_factory=list)

    @property
    def running(self) -> int:
        """Number of stages at work."""
        return sum(work.status == "RUNNING" for work in self.work)

    @property
    def pending(self) -> int:
        """Number of expected artifacts that are missing, damaged or outdated."""
        return sum(not self.is_current(artifact) for artifact in self.slots)

    def is_current(self, artifact: str) -> bool:
        """Tell whether an artifact is there, made with the current params from the current parents.

        Between two stages of ``dvc repro`` nothing runs and old artifacts may still lie there.
        """
        finished = self.finished.get(artifact)
        if finished is None or not self._fits(finished):
            return False
        slot = finished.slot
        if slot.kind == "evaluation":
            return all(
                self.score_is_current(finished, other.cell)
                for other in self.slots.values()
                if other.cell is not None and slot.fields.items() <= other.fields.items()
            )
        return all(
            self._is_parent(finished, name, kind)
            for name, kind in (("teacher", "teacher"), ("pool", "pool"))
        )

    def score_is_current(self, evaluation: Finished, cell: Cell) -> bool:
        """Tell whether an evaluation scored the student that is there now."""
        student = self.student(cell)
        if student is None or cell not in evaluation.rows:
            return False
        return evaluation.parents.get(cell.name, student.content) == student.content

    def with_content(self, content: str) -> Finished | None:
        """Return the artifact with this content hash, if it is there."""
        matches = (one for one in self.finished.values() if one.content == content)
        return next(matches, None)

    def is_running(self, slot: Slot) -> bool:
        """Tell whether the stage of ``slot`` is at work."""
        return any(one.status == "RUNNING" and one.slot == slot for one in self.work)

    def student(self, cell: Cell) -> Finished | None:
        """Return the student of ``cell``, if it is there."""
        return self.finished.get(self.student_path(cell))

    def evaluation(self, cell: Cell) -> Finished | None:
        """Return the evaluation that ``cell`` belongs to, if it is there."""
        place = self.layout.evaluation(cell.teacher, cell.student, cell.method)
        return self.finished.get(place.relative_to(self.layout.root).as_posix())

    def student_path(self, cell: Cell) -> str:
        """Return the artifact path of a cell's student."""
        return self.layout.student(cell).relative_to(self.layout.root).as_posix()

    def _fits(self, finished: Finished) -> bool:
        """Tell whether an artifact was made with the current values of its params blocks."""
        of_other = "other" in finished.slot.fields
        try:
            params = self.params.of_other() if of_other else self.params
            return hash_json(params.blocks(*finished.params)) == finished.params_hash
        except (KeyError, TypeError):
            return True  # it depends on something that is no block: not ours to compare

    def _is_parent(self, finished: Finished, name: str, kind: str) -> bool:
        content = finished.parents.get(name)
        for other in self.finished.values():
            axes = other.slot.fields.items()
            if content and other.slot.kind == kind and axes <= finished.slot.fields.items():
                return bool(other.content == content)
        return True


def take_snapshot(
    layout: Layout, params: Params, *, trusted: Container[tuple[str, str]]
) -> Snapshot:
    """Read all files of an experiment; what is damaged becomes a warning.

    Args:
        layout: Where the files are.
        params: The current params.
        trusted: Artifact paths with content hashes whose files need not be hashed again.
    """
    by_path = {slot.artifact: slot for slot in slots(layout, params.grid)}
    snapshot = Snapshot(layout, params, by_path)

    def read(reader: Callable[P, T | None], *args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return reader(*args, **kwargs)
        except KdciError as error:
            snapshot.warnings.append(str(error))
            return None

    # What tells of artifacts before them: it may be about older ones then, which shows.
    snapshot.origins = read_origins(layout)
    snapshot.trials = read_trials(layout)
    # Work before artifacts: a stage that finishes meanwhile is then seen as finished.
    for folder in sorted((layout.work / "work").glob("*/*")):
        work = read(read_work, folder, layout, by_path)
        if work is not None:
            snapshot.work.append(work)
    snapshot.work.sort(key=lambda work: work.started)
    for artifact, slot in by_path.items():
        finished = read(read_finished, slot, layout, trusted=trusted)
        if finished is not None:
            snapshot.finished[artifact] = finished
    snapshot.report = read(read_report, layout)
    return snapshot
