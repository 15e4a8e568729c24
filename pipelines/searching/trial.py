"""One trial: the same stage commands as `dvc repro`'s, in a root of its own, scored on the way.

The root has a params.yaml with the trial's values and links to what the workspace shares. A
stage that is stopped or killed leaves its checkpoint there, and the next run of the trial goes on
from it. Nothing here knows Ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import KdciError, UserError
from kdci.graph.build import Graph, graph_of
from kdci.graph.node import KINDS
from kdci.graph.standing import card_at
from kdci.store.artifacts import Artifact, open_artifact, replace_file, storage_errors
from kdci.store.layout import Cell, Layout
from kdci.training.schedules import snapshot_name, snapshot_steps
from pipelines.searching.criteria import Criterion, Scorer, load_snapshot
from pipelines.searching.plan import contents
from pipelines.searching.results import (
    STOP_FILE,
    Search,
    StageCall,
    search_folder,
    trial_folder,
    trial_id_of,
)
from pipelines.sweeping.guarded import command
from pipelines.sweeping.stage_environment import stage_environment

if TYPE_CHECKING:
    from kdci.models.students import Student

POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0
"""How long a stage has to save its state when it is stopped, before it is killed."""
PARAMS_FILE = "params.yaml"
LOG_FILE = "stages.log"
HOPELESS = (2, 3, 5)
"""Exit codes of stages that would end the same way again: params, integrity, numbers."""


@dataclass(frozen=True)
class Point:
    """A score on the way.

    Attributes:
        step: Steps of distillation so far; replicates follow one another.
        score: Mean over the replicates begun so far, in percent.
        num_steps: Steps of the whole trial.
        complete: Whether this is the trial's last.
    """

    step: int
    score: float
    num_steps: int
    complete: bool


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
        environment: The variables of the driver that a result may depend on.
        gpu_share: Share of a GPU's memory that its stages may take; 0: as much as there is.
    """

    def __init__(
        self,
        layout: Layout,
        search: Search,
        values: Mapping[str, Any],
        environment: Mapping[str, str],
        gpu_share: float = 0.0,
    ) -> None:
        self._project = layout.root
        self._search = search
        self._values = dict(values)
        self._environment = dict(environment)
        self._gpu_share = gpu_share
        self.root = trial_folder(layout, search.name, trial_id_of(values))
        self.layout = Layout(self.root, layout.preset)
        self._stop_file = search_folder(layout, search.name) / STOP_FILE
        self._process: subprocess.Popen[bytes] | None = None
        self._graph: Graph | None = None

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
        self._graph = graph_of(load_params(file), self.root)
        found = contents(self._graph, self._search.upstream)
        for place, content in self._search.upstream.items():
            if found[place] != content:
                what = "has changed since the search began"
                raise UserError(place, what, "bring it back, or search under another name")

    def _link(self, place: str) -> None:
        link = self.root / place
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((self._project / place).absolute())

    @property
    def graph(self) -> Graph:
        """The trial's graph, in its root."""
        assert self._graph is not None
        return self._graph

    @property
    def params(self) -> Params:
        """The trial's params."""
        return self.graph.params

    # -- the run ------------------------------------------------------------------------

    def points(self) -> Iterator[Point]:
        """Run the trial's stages and yield its scores as they come.

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
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _points(self) -> Iterator[Point]:
        calls = self._search.stages
        for call in calls:
            if call.student is None and not self._is_done(call):
                self._start(call)
                while not self._has_ended(call):
                    time.sleep(POLL_SECONDS)
        students = [call for call in calls if call.student is not None]
        length = self.params.recipe(self._search.method).num_steps
        finished: list[float] = []
        for position, call in enumerate(students):
            score = 0.0
            for step, score in self._distilled(call):
                yield Point(
                    step=position * length + step,
                    score=fmean([*finished, score]),
                    num_steps=len(students) * length,
                    complete=position == len(students) - 1 and step == length,
                )
            finished.append(score)

    def _distilled(self, call: StageCall) -> Iterator[tuple[int, float]]:
        """Distil a student, and yield steps with its scores after them."""
        marks, cell = self._marks(), self.graph.nodes[call.name].student
        assert cell is not None
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

    def _marks(self) -> list[int]:
        recipe = self.params.recipe(self._search.method)
        count = self.params.distill.num_snapshots
        return snapshot_steps(recipe.num_epochs, recipe.steps_per_epoch, count)

    def _snapshot(self, name: str, cell: Cell, step: int) -> Student | None:
        work = self.layout.work / "work" / name
        found = sorted(work.glob(f"*/{snapshot_name(step)}"), key=_age)
        return load_snapshot(found[0], self.params, cell) if found else None

    @cached_property
    def _scorer(self) -> Scorer:
        measure, _, split = self._search.criterion.partition(":")
        criterion = Criterion(measure, split or None)  # type: ignore[arg-type]
        return Scorer(self.graph, self._project, criterion, self._search.cells)

    # -- stages -------------------------------------------------------------------------

    def _is_done(self, call: StageCall) -> bool:
        """Tell whether an earlier run of this trial finished the stage."""
        return card_at(self.root / call.artifact, KINDS[call.stage]) is not None

    def _start(self, call: StageCall) -> None:
        self._raise_if_stopped()
        params = ("--params", str(self.root / PARAMS_FILE))
        module_call = [f"stages.{call.stage}", *params, call.cell]
        environment = stage_environment(os.environ, self._environment, root=str(self._project))
        log = self.root / LOG_FILE
        with storage_errors(log), log.open("wb") as out:
            self._process = subprocess.Popen(
                command(module_call, gpu_share=self._gpu_share),
                cwd=self._project,  # relative data paths start there, and the code lies there
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C on the terminal reaches the driver alone
            )

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
        message = f"{call.name} ended with {code}: {self._last_words()}"
        raise (TrialFailedError if code in HOPELESS else StageEndedError)(message)

    def _raise_if_stopped(self) -> None:
        if self._stop_file.exists():
            self.stop()
            raise SearchStoppedError

    def _last_words(self) -> str:
        lines = (self.root / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        own = [line for line in lines if line.startswith("kdci: error:")]
        return (own or [line for line in lines if line.strip()] or ["no word"])[-1].strip()


def _age(file: Path) -> float:
    """Return how long ago a file was written, the newest first."""
    try:
        return -file.stat().st_mtime
    except OSError:
        return 0.0


def _student_at(artifact: Artifact, step: int) -> Student:
    """Return a finished student, or the snapshot of an earlier step."""
    from kdci.models.students import snapshot_of, student_of

    if step == artifact.facts["num_steps"]:
        return student_of(artifact)
    return snapshot_of(artifact, dict(artifact.facts["snapshots"])[step])
