"""What `kdci sweep --search` and `kdci promote` print."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import typer

from kdci.config.params_file import load_params
from kdci.graph.node import KINDS
from kdci.store.layout import Layout
from pipelines.flow.telemetry import switch_off
from pipelines.running.run_display import warn
from pipelines.running.stopping import StopRequest
from pipelines.running.workspace import only_runner
from pipelines.searching.driver import await_trials, prepare, told_to_trials, tune_trials
from pipelines.searching.options import SearchOptions
from pipelines.searching.results import (
    Search,
    TrialRecord,
    best_of,
    plain,
    read_trials,
    table,
    write_results,
)
from pipelines.serving.promote import promote
from pipelines.sweeping.ray_session import ray_session
from pipelines.tracking.recorder import Recorder

MAX_NAMES = 8
"""So many stages are named; of more, the number is told."""


def search_space(
    root: Path,
    options: SearchOptions,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    allow_no_token: bool = False,
    track: bool = False,
) -> int:
    """Search, or go on with the search that has these options, and print the table.

    Args:
        root: The project folder.
        options: What is asked for.
        address: Of a Ray cluster; None: an instance of our own.
        num_cpus: Cores that an instance of our own hands out; None: those there are.
        allow_no_token: Accept a Ray without a token.
        track: Keep MLflow's record up to date while trials run.

    Returns:
        The exit code.

    Raises:
        UserError: Space, params, criterion or upstream artifacts do not fit: nothing was run.
        BusyError: Somebody else runs stages here.
    """
    switch_off()
    stop = StopRequest()
    with ExitStack() as recording, only_runner(Layout(root, ""), "kdci sweep"):
        params = load_params(root / "params.yaml")
        layout = Layout(root, params.preset)
        space, found = prepare(root, params, options)
        records = read_trials(layout, found.name)
        display = _Display(options.num_trials, found, records)
        num_left = options.num_trials - sum(record.is_finished for record in records)
        if num_left > 0:
            with stop.installed(), told_to_trials(layout, found, stop):
                # Ends once the search has let go of the project: an unfinished trial would be
                # taken for one at work.
                if track:
                    recording.enter_context(Recorder(root))
                with ray_session(address=address, num_cpus=num_cpus, allow_no_token=allow_no_token):
                    tune_trials(
                        params,
                        layout,
                        found,
                        space,
                        records,
                        options,
                        num_left,
                        display.event,
                        stop,
                    )
                    await_trials(layout, found)
        records = read_trials(layout, found.name)
        file = write_results(layout, found, records)
    typer.echo(table(found, records))
    typer.echo(f"table: {file.relative_to(root)}")
    best = best_of(records)
    if best is not None:
        typer.echo(f"best: {best.name}; `kdci promote {best.search}` writes it to params.yaml")
    else:
        warn("no trial is complete")
    if stop:
        typer.echo("kdci: stopped; the same command goes on", err=True)
        return stop.exit_code
    return 0 if best is not None else 1


class _Display:
    """Tells how a search goes, a line for what begins and ends."""

    def __init__(self, num_trials: int, found: Search, records: list[TrialRecord]) -> None:
        self._num_trials = num_trials
        self._ended = sum(record.is_finished for record in records)
        known = f", {self._ended} of them known already" if self._ended else ""
        typer.echo(f"{found.name}: {self._num_trials} trials by {found.metric}{known}")
        pools = any(KINDS[call.stage] == "pool" for call in found.stages)
        if pools and found.criterion == "agreement":
            warn(
                "the space changes the pool, and with it the held-out substitutes that "
                "agreement is measured on: an easy pool scores high"
            )

    def event(self, record: TrialRecord, event: str) -> None:
        values = ", ".join(f"{key} {value}" for key, value in record.values.items())
        if event == "started":
            typer.echo(f"{record.trial_id} started: {values}")
        elif event == "ended":
            self._ended += 1
            score = "" if record.score is None else f" at {record.score:.2f}"
            told = f": {record.error}" if record.error else score
            typer.echo(
                f"[{self._ended}/{self._num_trials}] {record.trial_id} {record.status}{told}"
            )


def promote_run(root: Path, run: str, *, dry_run: bool) -> None:
    """Promote a trial and print what that means."""
    promotion = promote(root, run, dry_run=dry_run)
    record = promotion.record
    for warning in promotion.warnings:
        warn(warning)
    word = "would write" if dry_run else "wrote"
    finished = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
    typer.echo(f"trial {record.name}, complete at {finished}")
    for key, (old, new) in promotion.changes.items():
        typer.echo(f"{word} {key}: {plain(old)} -> {plain(new)}")
    if not promotion.changes:
        typer.echo("params.yaml has these values already")
    typer.echo(f"`dvc repro` runs {_listed(promotion.stages)}")
    typer.echo(f"promised: {promotion.promise}")


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    told = ", ".join(names[:MAX_NAMES])
    rest = len(names) - MAX_NAMES
    return told + (f" and {rest} more" if rest > 0 else "")
