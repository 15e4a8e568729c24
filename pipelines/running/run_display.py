"""What `kdci run` says on the terminal while stages run: who starts, speaks, and ends how."""

from __future__ import annotations

import time

import typer

from pipelines.running.limits import Run
from pipelines.running.stage_process import Outcome, State

_TOLD = {State.completed, State.restored, State.failed, State.stopped}


def show_line(stage: str, line: str) -> None:
    """Show a line of a stage's output, under its name unless it begins with it."""
    typer.echo(line if line.startswith(stage) else f"{stage}  {line}")


def show_outcome(run: Run, outcome: Outcome) -> None:
    """Show how a stage ended; what was up to date or not run is counted at the end."""
    if outcome.state not in _TOLD:
        return
    done = len(run.scheduler.outcomes)
    clock, total = time.strftime("%H:%M:%S"), len(run.dag.stages)
    text = f"{clock}  [{done}/{total}] {outcome.stage}: {outcome.state}, {outcome.seconds:.1f} s"
    typer.echo(text, err=outcome.state is State.failed)


def show_end(run: Run) -> None:
    """Show what a run came to: counts, then each failure with the stage's own last lines."""
    typer.echo(run.summary())
    for outcome in run.outcomes:
        if outcome.state is State.failed:
            typer.echo(f"{outcome.stage} failed:", err=True)
            for line in outcome.message.splitlines():
                typer.echo(f"  {line}", err=True)
