"""Commands that look after what was run: the record, what is stale, what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from pipelines.commands.shared import project, project_root, root_if_any, tell, warn

if TYPE_CHECKING:
    from pipelines.tracking import SyncSummary


def explain_stages(
    context: typer.Context,
    stages: Annotated[
        list[str] | None,
        Argument(help="Stages, entries of dvc.yaml or patterns; none: all that would run."),
    ] = None,
    limit: Annotated[
        int, Option(min=1, help="Stages at work at a time, to tell what they take together.")
    ] = 1,
    as_json: Annotated[bool, Option("--json", help="For scripts.")] = False,
) -> None:
    """Tell why stages would run again, what follows, and what it will take; run nothing."""
    params, layout = project(context, methods=False)
    from pipelines.explaining.explain import explain
    from pipelines.explaining.tasks import tasks_of
    from pipelines.explaining.text import explanation_lines
    from pipelines.graph.current import current_graph

    tasks = tasks_of(current_graph(layout.root, params))
    explanation = explain(layout, tasks, stages or (), limit=limit)
    if as_json:
        typer.echo(json.dumps(asdict(explanation), indent=1))
        return
    for line in explanation_lines(explanation):
        typer.echo(line)


def doctor(
    context: typer.Context,
    fix: Annotated[
        bool, Option("--fix", help="Remove what is certainly stale; end no process.")
    ] = False,
    deep: Annotated[
        bool, Option("--deep", help="Also load Prefect's server, which takes seconds.")
    ] = False,
) -> None:
    """Look for what is wrong around the pipeline: versions, locks, processes, servers, disk."""
    from pipelines.checking.diagnosis import doctor as physician

    findings = []
    examined = physician.examine(root_if_any(context), deep=deep)
    for finding in physician.repaired(examined) if fix else examined:
        typer.echo(finding.line)
        findings.append(finding)
    raise typer.Exit(physician.exit_code(findings))


def sync(
    context: typer.Context,
    follow: Annotated[
        bool, Option("--follow", help="Go on until every artifact is there, or Ctrl-C.")
    ] = False,
) -> None:
    """Bring the MLflow view up to date with the experiment's files."""
    params, layout = project(context)
    from pipelines import tracking

    if follow:
        tracking.follow(layout, params, on_pass=_show_pass)
    else:
        _show_pass(tracking.sync(layout, params))


def _show_pass(outcome: SyncSummary) -> None:
    for warning in outcome.warnings:
        warn(warning)
    versions = f" and {outcome.versions} model versions" if outcome.versions else ""
    typer.echo(
        f"{outcome.experiment}: {outcome.created} runs and {outcome.points} points{versions} "
        f"added; "
        f"{outcome.running} stages at work, {outcome.pending} artifacts pending"
    )


def verify(context: typer.Context) -> None:
    """Re-hash every artifact of the current params."""
    params, layout = project(context, methods=False)
    from pipelines.checking import housekeeping

    found = housekeeping.verify(params, layout)
    for node in found.missing:
        typer.echo(f"not built: {node.name} ({node.artifact.relative_to(layout.root)})")
    if found.problems:
        raise typer.Exit(tell(found.problems))
    typer.echo(f"ok: {len(found.intact)} artifacts match their cards")


def clean(
    context: typer.Context,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove checkpoints that nothing will go on from."""
    params, layout = project(context)
    from pipelines.checking import housekeeping

    removals = housekeeping.clean(params, layout, dry_run=dry_run)
    word = "would remove" if dry_run else "removed"
    for removal in removals:
        place = removal.path.relative_to(layout.root)
        typer.echo(f"{word} {place}: {removal.num_bytes:,} bytes, {removal.reason}")
    total = sum(removal.num_bytes for removal in removals)
    typer.echo(f"{word} {len(removals)} folders, {total:,} bytes")


def migrate(context: typer.Context) -> None:
    """Take over, into DVC's record, what an earlier version of kdci made; see CHANGELOG.md."""
    root = project_root(context)
    from pipelines.checking.migration import migrate as carry_over

    found = carry_over(root)
    for name, why in found.left.items():
        typer.echo(f"not taken over: {name}: {why}")
    if found.taken or found.dropped:
        typer.echo(f"taken over: {len(found.taken)} artifacts; cards and files are as they were")
        typer.echo(f"dropped from dvc.lock: {len(found.dropped)} entries of stages that are gone")
    elif not found.left:
        typer.echo("nothing to take over")
