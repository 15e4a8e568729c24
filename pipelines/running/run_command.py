"""`kdci run`: the project's stages, shown by Prefect where it answers, recorded in MLflow.

Stages are driven from the main thread; the Prefect flow runs beside it and starts them. What
the flow does not start, because its server is slow or gone, is started here.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer

from kdci.errors import StorageError
from pipelines.flow.server import require_answer, server_address
from pipelines.flow.telemetry import switch_off
from pipelines.running.limits import Run, crowding, open_run
from pipelines.running.run_display import ended, show_line, show_record, warn
from pipelines.running.scheduler import PATIENCE
from pipelines.running.stage_process import Outcome, State
from pipelines.running.stopping import stopped_by_signals
from pipelines.tracking.recorder import Record, Recorder

START_PATIENCE = 45.0
"""Seconds that the flow may take to begin: an embedded server starts in 8 to 20."""
END_PATIENCE = 60.0
"""Seconds that the flow may take to show the end of a run."""
ABANDONED_PATIENCE = 5.0
"""The same, when its server has failed before."""
PROBE_SECONDS = 2.0
"""Seconds between two looks whether its server still answers."""


def run_stages(
    root: Path,
    *,
    targets: Sequence[str] = (),
    preset: str | None = None,
    seeds: list[int] | None = None,
    limit: int | None = None,
    prefect: bool = True,
    track: bool = True,
) -> int:
    """Run the stages, shown by Prefect and tracked in MLflow if so asked; return the exit code.

    What is run, and what is raised when nothing was: see ``pipelines.running.limits.open_run``.
    """
    switch_off()
    asked: dict[str, Any] = {"preset": preset, "seeds": seeds, "limit": limit}
    runner = "prefect" if prefect else "plain"
    with ExitStack() as stack:
        run = stack.enter_context(
            open_run(
                root,
                runner=runner,
                targets=targets,
                on_line=show_line,
                on_outcome=_show_outcome,
                **asked,
            )
        )
        warning = crowding(run.params, run.limit)
        if warning is not None:
            warn(warning)
        recorder = stack.enter_context(Recorder(root)) if track else None
        stack.enter_context(stopped_by_signals(partial(_stop, run), twice_ends=True))
        asked["targets"] = list(targets) or None
        flow = _Flow(run, recorder, asked) if prefect else None
        if flow is None:
            run.scheduler.run_all()
        else:
            flow.drive()
        _show_end(run)
        # First, for the flow shows links to it before it ends.
        record = recorder.finish() if recorder is not None else Record()
        if flow is not None:
            flow.wait()
        show_record(record, "run")
    _show_results(run)
    if flow is not None and flow.is_alive:
        _leave_now(run.exit_code)
    return run.exit_code


@dataclass
class _Flow:
    """The Prefect flow, in a thread beside the one that drives the run."""

    run: Run
    recorder: Recorder | None
    asked: dict[str, Any]
    failed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._begun = threading.Event()
        # A daemon: a server that does not answer must not keep the process.
        self._thread = threading.Thread(target=self._call, name="prefect", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def drive(self) -> None:
        """Run the stages, each started by the flow as long as it does so in time."""
        _quiet_prefect()
        self._thread.start()
        self._await_begin()
        self.run.scheduler.watch(0.0 if self.failed else PATIENCE, self._overdue)

    def wait(self) -> None:
        """Let the flow show the end of the run, for as long as its server answers."""
        deadline = time.monotonic() + (ABANDONED_PATIENCE if self.failed else END_PATIENCE)
        while time.monotonic() < deadline:
            self._thread.join(PROBE_SECONDS)
            if not self._thread.is_alive():
                return
            if not self.failed and self._is_gone():
                deadline = time.monotonic() + ABANDONED_PATIENCE
                self.failed = True
        warn("Prefect has not taken in the end of the run; it may show it as running")

    def _is_gone(self) -> bool:
        address = server_address()
        try:
            if address is not None:
                require_answer(address)
        except StorageError:
            return True
        return False

    def _await_begin(self) -> None:
        """Wait until the flow runs or has failed to, or patience ends."""
        deadline_steps = int(START_PATIENCE / 0.1)
        for _ in range(deadline_steps):
            if self._begun.wait(0.1) or self.failed or self.run.scheduler.finished:
                return
        self._overdue("the flow")

    def _overdue(self, stage: str) -> None:
        if not self.failed:
            warn(f"Prefect has not started {stage} in time; what is left runs without waiting")
        self.failed = True

    def _call(self) -> None:
        try:
            address = server_address()
            if address is not None:
                require_answer(address)
            from pipelines.flow.reproduce import handed_over, reproduce

            with handed_over(self.run, self.recorder, self._begun.set):
                reproduce(**self.asked, return_state=True)
        except BaseException as error:  # whatever it is, the run goes on
            if not self.failed:
                first = (str(error).strip().splitlines() or [type(error).__name__])[0]
                warn(f"Prefect does not show this run: {first[:200]}; it goes on without")
            self.failed = True
        finally:
            self._begun.set()


def _quiet_prefect() -> None:
    """Have Prefect leave the terminal to us, and give up sooner; before it is imported."""
    settings = {
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLIENT_MAX_RETRIES": "2",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # Its handler writes a line to stderr for each batch of logs that a dead server refuses.
    logging.raiseExceptions = False


def _stop(run: Run, number: int) -> None:
    warn("stopping: stages save their state; once more to end at once")
    run.scheduler.stop(number)


def _show_outcome(run: Run, outcome: Outcome) -> None:
    """Show how a stage ended; what was up to date or not run is counted at the end."""
    if outcome.state in (State.cached, State.not_run):
        return
    text = ended(outcome, len(run.scheduler.outcomes), len(run.dag.stages))
    typer.echo(text, err=outcome.state is State.failed)


def _show_end(run: Run) -> None:
    """Show what a run came to: counts, then each failure with the stage's own last lines."""
    typer.echo(run.summary())
    for outcome in run.outcomes:
        if outcome.state is State.failed:
            typer.echo(f"{outcome.stage} failed:", err=True)
            for line in outcome.message.splitlines():
                typer.echo(f"  {line}", err=True)


def _show_results(run: Run) -> None:
    from kdci.reporting.results import load_rows
    from kdci.reporting.text.tables import terminal_table

    report = next((o for o in run.outcomes if o.stage == "report"), None)
    if report is not None and report.has_result:
        typer.echo(terminal_table(load_rows(run.layout.report / "results.json")))


def _leave_now(exit_code: int) -> None:
    """End the process though Prefect still waits for its server; everything is on disk."""
    import psutil

    for child in psutil.Process().children(recursive=True):  # a server of its own
        with suppress(psutil.Error):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
