"""What a run says on the terminal while stages run: who starts, speaks, and ends how."""

from __future__ import annotations

import time
from collections.abc import Iterable

import typer

from pipelines.running.stage_process import Outcome, State
from pipelines.tracking.recorder import Record


def warn(text: str) -> None:
    """Write a warning to stderr."""
    typer.echo(f"kdci: warning: {text}", err=True)


def show_line(stage: str, line: str) -> None:
    """Show a line of a stage's output, under its name unless it begins with it."""
    typer.echo(line if line.startswith(stage) else f"{stage}  {line}")


def ended(outcome: Outcome, done: int, total: int) -> str:
    """Return how a stage ended, after ``done`` of ``total``, in a line."""
    text = f"{outcome.stage}: {outcome.state}, {outcome.seconds:.1f} s"
    return f"{time.strftime('%H:%M:%S')}  [{done}/{total}] {text}"


def counted(outcomes: Iterable[Outcome]) -> list[str]:
    """Return how many stages came to what: `3 completed`, `1 failed`."""
    states = [outcome.state for outcome in outcomes]
    return [f"{states.count(state)} {state}" for state in State if state in states]


def show_record(record: Record | None, of: str) -> None:
    """Show what MLflow has of a run or a sweep; None: not even its end."""
    if record is None:
        warn(f"MLflow has no record of the end of this {of}; `kdci sync` makes it")
        return
    for warning in record.warnings:
        warn(warning)
    if record.text:
        typer.echo(record.text)
