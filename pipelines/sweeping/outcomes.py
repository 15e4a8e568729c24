"""What came of each stage of a sweep: kept, told as it happens, and written into the journal."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import typer

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from kdci.store.layout import Layout
from pipelines.running import journal
from pipelines.running.exit_codes import gravest
from pipelines.running.run_display import counted, ended, warn
from pipelines.running.stage_process import Outcome, State
from pipelines.running.stopping import StopRequest
from pipelines.sweeping import attempts
from pipelines.sweeping.attempts import History
from pipelines.sweeping.trial import STOP_CODES

_FAILURE = "Failure # "
_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b")


def reason(report: str) -> str:
    """Return why the last attempt at a trial failed; "": nothing is said.

    Args:
        report: Ray's file: for each failure a line that begins it, then a traceback or a notice.
    """
    lines = [line.strip() for line in report.rpartition(_FAILURE)[2].splitlines()[1:]]
    lines = [line for line in lines if line]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines[:1] or [""])[-1][:300]


class Outcomes:
    """The outcomes of a sweep, which keeps its files in ``folder``.

    Attributes:
        by_stage: In the order in which they came.
    """

    def __init__(self, layout: Layout, folder: Path, total: int, stop: StopRequest) -> None:
        self.by_stage: dict[str, Outcome] = {}
        self._layout = layout
        self._folder = folder
        self._total = total
        self._stop = stop

    def recorded(self, name: str, problem: str | None) -> None:
        """Note that a stage's result is in DVC, or why it is not."""
        history = attempts.read_history(self._folder, name)
        if problem is None:
            self._note_trial(name, State.completed, "", 0, history)
            attempts.forget(self._folder, name)
        else:
            message = f"its result is not recorded in DVC: {problem}"
            self._note_trial(name, State.failed, message, 1, history)

    def without_result(self, name: str, report: str = "") -> None:
        """Note that a stage's trial ended without a result, and what Ray reports of it."""
        error, history = reason(report), attempts.read_history(self._folder, name)
        code = None if history is None else history.exit_code
        if self._stop and (code is None or code in STOP_CODES):
            state = State.not_run if history is None else State.stopped
            self._note_trial(name, state, "stopped", self._stop.exit_code, history)
        elif history is None:
            message = f"no worker could run it: {error or 'Ray gives no reason'}"
            self._note_trial(name, State.failed, message, 1, history)
        elif code is None:
            message = f"its worker died or was killed at attempt {history.attempts}"
            message += f": {error}" if error else ""
            history = replace(history, seconds=time.time() - history.started)
            self._note_trial(name, State.failed, message, 1, history)
        else:
            self._note_trial(name, State.failed, history.message, code, history)

    def note(self, outcome: Outcome, links: Mapping[str, str] | None = None) -> None:
        """Note how a stage ended, with the ids of its trial; None: it was run here, by DVC."""
        self.by_stage[outcome.stage] = outcome
        if outcome.state in (State.cached, State.not_run):
            return
        self._tell(outcome)
        runner = "plain" if links is None else "ray"
        node = self._node(outcome.stage)
        journal.note(self._layout, outcome, node, runner=runner, links=links or {})

    @property
    def exit_code(self) -> int:
        """That of the signal that stopped the sweep, or of the gravest failure; 0: of neither."""
        if self._stop:
            return self._stop.exit_code
        failed = [o.exit_code for o in self.by_stage.values() if o.state is State.failed]
        return gravest(failed)

    def tell_end(self) -> None:
        """Say how many stages came to what, and for each failure why."""
        told = counted(self.by_stage.values())
        rest = self._total - len(self.by_stage)
        if rest:  # their parents came out as they were, or it was stopped before their turn
            told.append(f"{rest} {'left' if self._stop else 'up to date after all'}")
        typer.echo(f"{self._total} stages to see to: {', '.join(told)}")
        for outcome in self.by_stage.values():
            if outcome.state is State.failed:
                warn(f"{outcome.stage} failed: {outcome.message}")

    def _note_trial(
        self, name: str, state: State, message: str, code: int, history: History | None
    ) -> None:
        started, seconds = (history.started, history.seconds) if history else (time.time(), 0.0)
        links = history.links if history else {}
        self.note(Outcome(name, state, message, code, started, seconds), links)

    def _tell(self, outcome: Outcome) -> None:
        done = sum(each.has_result for each in self.by_stage.values())
        text = ended(outcome, done, self._total)
        if outcome.state is State.failed:
            warn(f"{text}: {(outcome.message.splitlines() or [''])[-1]}")
        else:
            typer.echo(text)

    def _node(self, stage: str) -> Node | None:
        root = self._layout.root
        with suppress(KdciError):  # params.yaml is being edited
            params = load_params(root / "params.yaml", methods=False)
            return graph_of(params, root).nodes.get(stage)
        return None
