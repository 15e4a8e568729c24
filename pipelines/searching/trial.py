"""One trial: the same stage commands as `dvc repro`'s, in a root of its own, scored on the way.

The root has a params.yaml with the trial's values and links to what the workspace shares. A
stage that is stopped or killed leaves its checkpoint there, and the next run of the trial goes on
from it. Nothing here knows Ray.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdci.config.params_file import load_params
from kdci.errors import KdciError, UserError
from kdci.graph.build import graph_of
from kdci.graph.node import KINDS
from kdci.graph.standing import card_at
from kdci.store.artifacts import Artifact, open_artifact, replace_file, storage_errors
from kdci.store.layout import Cell, Layout
from kdci.training.schedules import snapshot_name, snapshot_steps
from pipelines.searching.criteria import Scorer, load_snapshot
from pipelines.searching.plan import contents
from pipelines.searching.results import (
    STOP_FILE,
    Search,
    StageCall,
    search_folder,
    trial_folder,
    trial_id_of,
)
from pipelines.sweeping.guarded import Guard, end, last_words
from pipelines.sweeping.trial import changed

if TYPE_CHECKING:
    from kdci.models.students import Student

POLL_SECONDS = 0.2
PARAMS_FILE = "params.yaml"
LOG_FILE = "stages.log"
HOPELESS = (2, 3, 5)
"""Exit codes of stages that would end the same way again: params, integrity, numbers."""


class TrialFailedError(Exception):
    """A stage ended in a way that it would end in again."""


class StageEndedError(Exception):
    """A stage was killed, or the disk or a lock was in its way: worth another try."""


class SearchStoppedError(Exception):
    """The search is being stopped; the stage has saved its state."""


class Trial:
    """One trial of a search.

    Args:
        layout: Of the workspace.
        search: What is searched.
        values: The trial's, by dotted key.
        guard: Starts its stages in the workspace: relative data paths start there, and the code
            lies there.
    """

    def __init__(
        self, layout: Layout, search: Search, values: Mapping[str, Any], guard: Guard
    ) -> None:
        self._project = layout.root
        self._search = search
        self._values = dict(values)
        self._guard = guard
        self.root = trial_folder(layout, search.name, trial_id_of(values))
        self.layout = Layout(self.root, layout.preset)
        self._stop_file = search_folder(layout, search.name) / STOP_FILE
        self._process: subprocess.Popen[bytes] | None = None

    # -- the root -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Write params.yaml and the links; what is there of an earlier run stays.

        Raises:
            StorageError: The disk is full or not writable.
            UserError: The values are not valid together, or a shared artifact has changed.
        """
        from pipelines.params.edit import with_values

        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for place in (*self._search.upstream, *self._search.links):
                self._link(place)
        base = (self.root.parents[1] / PARAMS_FILE).read_text(encoding="utf-8")
        file = self.root / PARAMS_FILE
        replace_file(file, with_values(base, self._values).encode())
        self.graph = graph_of(load_params(file), self.root)
        found = contents(self.graph, self._search.upstream)
        for place, content in self._search.upstream.items():
            if found[place] != content:
                what = "has changed since the search began"
                raise UserError(place, what, "bring it back, or search under another name")

    def _link(self, place: str) -> None:
        link = self.root / place
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((self._project / place).absolute())

    # -- the run ------------------------------------------------------------------------

    def points(self) -> Iterator[dict[str, Any]]:
        """Run the trial's stages and yield its scores as they come.

        Yields:
            ``steps`` of distillation so far, replicates following one another; ``score`` after
            them, the mean over the replicates begun so far, in percent; ``num_steps`` of the whole
            trial; whether it is ``complete`` with this.

        Raises:
            TrialFailedError: A stage failed for good.
            StageEndedError: A stage was killed.
            SearchStoppedError: The search is being stopped.
        """
        try:
            self.prepare()
            yield from self._points()
        except KdciError as error:
            raise TrialFailedError(error.lines()[0]) from error
        finally:
            self.stop()

    def stop(self) -> None:
        """Have the stage at work save its state and end; it is killed if it does not."""
        if self._process is not None:
            end(self._process)

    def _points(self) -> Iterator[dict[str, Any]]:
        calls = self._search.stages
        for call in calls:
            if call.student is None and not self._is_done(call):
                self._start(call)
                while not self._has_ended(call):
                    time.sleep(POLL_SECONDS)
        students = [call for call in calls if call.student is not None]
        length = self.graph.params.recipe(self._search.method).num_steps
        finished: list[float] = []
        for position, call in enumerate(students):
            score = 0.0
            for step, score in self._distilled(call):
                yield {
                    "score": fmean([*finished, score]),
                    "steps": position * length + step,
                    "num_steps": len(students) * length,
                    "complete": position == len(students) - 1 and step == length,
                }
            finished.append(score)

    def _distilled(self, call: StageCall) -> Iterator[tuple[int, float]]:
        """Distil a student, and yield steps with its scores after them."""
        cell, params = self.graph.nodes[call.name].student, self.graph.params
        assert cell is not None
        recipe = params.recipe(self._search.method)
        marks = snapshot_steps(
            recipe.num_epochs, recipe.steps_per_epoch, params.distill.num_snapshots
        )
        if not self._is_done(call):
            self._start(call)
            _ = self._scorer  # loads what it needs while the stage does
            while marks[1:] and not self._has_ended(call):
                student = self._snapshot(call.name, cell, marks[0])
                if student is not None:
                    yield marks.pop(0), self._scorer.score(student, cell)
                else:
                    time.sleep(POLL_SECONDS)
            while not self._has_ended(call):
                time.sleep(POLL_SECONDS)
        artifact = open_artifact(self.root / call.artifact, kind="student")
        for step in marks:
            yield step, self._scorer.score(_student_at(artifact, step), cell)

    def _snapshot(self, name: str, cell: Cell, step: int) -> Student | None:
        files = (self.layout.work / "work" / name).glob(f"*/{snapshot_name(step)}")
        newest = max(files, key=changed, default=None)
        return None if newest is None else load_snapshot(newest, self.graph.params, cell)

    @cached_property
    def _scorer(self) -> Scorer:
        search = self._search
        return Scorer(self.graph, self._project, search.criterion, search.cells[0])

    # -- stages -------------------------------------------------------------------------

    def _is_done(self, call: StageCall) -> bool:
        """Tell whether an earlier run of this trial finished the stage."""
        return card_at(self.root / call.artifact, KINDS[call.stage]) is not None

    def _start(self, call: StageCall) -> None:
        self._raise_if_stopped()
        module_call = [f"stages.{call.stage}", "--params", str(self.root / PARAMS_FILE), call.cell]
        log = self.root / LOG_FILE
        with storage_errors(log):
            log.unlink(missing_ok=True)
            self._process = self._guard.start(module_call, log)

    def _has_ended(self, call: StageCall) -> bool:
        """Tell whether the stage has its result; raises if it ended without."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            self._raise_if_stopped()
            return False
        if code == 0:
            return True
        self._raise_if_stopped()
        message = f"{call.name} ended with {code}: {last_words(self.root / LOG_FILE) or 'no word'}"
        raise (TrialFailedError if code in HOPELESS else StageEndedError)(message)

    def _raise_if_stopped(self) -> None:
        if self._stop_file.exists():
            self.stop()
            raise SearchStoppedError


def _student_at(artifact: Artifact, step: int) -> Student:
    """Return a finished student, or the snapshot of an earlier step."""
    from kdci.models.students import snapshot_of, student_of

    if step == artifact.facts["num_steps"]:
        return student_of(artifact)
    return snapshot_of(artifact, dict(artifact.facts["snapshots"])[step])
