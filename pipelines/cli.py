"""The console command `kdci`: a thin layer over modules that are imported when they are used.

Everything also works without it: `dvc repro`, `python -m stages.X`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from kdci.errors import KdciError, StorageError, UserError

if TYPE_CHECKING:
    from kdci.config import Params
    from kdci.layout import Layout
    from pipelines.tracking import SyncSummary

INTERRUPTED = 130
# typer brings a click of its own or uses the installed one, whichever its version likes.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="kdci",
    help="Data-free knowledge distillation with a de-confounded student.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@dataclass
class Options:
    """The options before the command; no root: it is looked for."""

    root: Path | None = None
    debug: bool = False


class Listing(StrEnum):
    """What `kdci list` can list."""

    methods = "methods"
    backbones = "backbones"
    arms = "arms"
    datasets = "datasets"
    presets = "presets"


def main() -> NoReturn:
    """Run the command and exit with its code."""
    sys.exit(run())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; errors are stderr lines, see ``kdci.errors``."""
    options = Options()
    arguments = None if argv is None else list(argv)
    try:
        code = app(arguments, prog_name="kdci", standalone_mode=False, obj=options)
        return code if isinstance(code, int) else 0
    except typer.Abort:
        return INTERRUPTED
    except (_UsageError, KdciError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        return _tell([_worded(error)])


def _worded(error: Any) -> KdciError:
    if isinstance(error, KdciError):
        return error
    if isinstance(error, OSError):
        place, what = str(error.filename or "file system"), error.strerror or str(error)
        return StorageError(place, what, "mend it and try again")
    return UserError("command line", error.format_message().rstrip("."), "see `kdci --help`")


def _tell(problems: Sequence[KdciError]) -> int:
    """Write every problem to stderr and return the exit code: that of the gravest one."""
    for problem in problems:
        for line in problem.lines():
            typer.echo(line, err=True)
    return max(problem.exit_code for problem in problems)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Project folder; else the nearest one from here upwards that holds "
            "params.yaml or dvc.yaml."
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Data-free knowledge distillation with a de-confounded student."""
    context.obj.root, context.obj.debug = root, debug
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"kdci {version_of('kdci')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _root(context: typer.Context) -> Path:
    """Return the project folder.

    Raises:
        UserError: There is none.
    """
    given: Path | None = context.obj.root
    if given is not None:
        if not given.is_dir():
            raise UserError(str(given), "is no folder", "give the project folder")
        return given.absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if any((folder / name).is_file() for name in ("params.yaml", "dvc.yaml")):
            return folder
    what = "neither it nor a folder above holds params.yaml or dvc.yaml"
    raise UserError(str(here), what, "go to the project folder, or give it with --root")


def _project(context: typer.Context) -> tuple[Params, Layout]:
    from kdci.layout import Layout
    from kdci.params_file import load_params

    root = _root(context)
    params = load_params(root / "params.yaml")
    return params, Layout(root, params.preset)


@app.command()
def check(context: typer.Context) -> None:
    """Validate params, data and teacher; run nothing."""
    params, layout = _project(context)
    from pipelines.checks import find_problems, summary

    problems = find_problems(params, layout)
    if problems:
        raise typer.Exit(_tell(problems))
    for line in summary(params, layout):
        typer.echo(line)


@app.command("list")
def list_names(what: Annotated[Listing, typer.Argument(help="What to list.")]) -> None:
    """List names that params.yaml and `kdci preset` take, one a line."""
    from kdci.arms import ARMS
    from kdci.catalog import BACKBONE_NAMES, DATASETS
    from kdci.config import METHOD_NAMES
    from pipelines.presets import preset_names

    names = {
        Listing.methods: METHOD_NAMES,
        Listing.backbones: BACKBONE_NAMES,
        Listing.arms: ARMS,
        Listing.datasets: DATASETS,
        Listing.presets: preset_names(),
    }
    typer.echo("\n".join(names[what]))


@app.command()
def preset(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="One of `kdci list presets`.")],
    data: Annotated[str | None, typer.Option(help="Folder that holds the preset's data.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an edited params.yaml.")] = False,
) -> None:
    """Write a preset's params.yaml."""
    from pipelines.presets import write_preset

    file = _root(context) / "params.yaml"
    write_preset(name, file, data=data, force=force)
    typer.echo(f"{file} is preset {name} now; `kdci check` looks it over, `dvc repro` runs it")


@app.command()
def show(context: typer.Context) -> None:
    """Print the table of results again."""
    from kdci.reporting.results import load_rows
    from kdci.reporting.table import terminal_table

    typer.echo(terminal_table(load_rows(_root(context) / "report" / "results.json")))


@app.command()
def sync(
    context: typer.Context,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until every artifact is there, or Ctrl-C.")
    ] = False,
) -> None:
    """Bring the MLflow view up to date with the experiment's files."""
    params, layout = _project(context)
    from pipelines import tracking

    if follow:
        tracking.follow(layout, params, on_pass=_show_pass)
    else:
        _show_pass(tracking.sync(layout, params))


def _show_pass(outcome: SyncSummary) -> None:
    for warning in outcome.warnings:
        typer.echo(f"kdci: warning: {warning}", err=True)
    typer.echo(
        f"{outcome.experiment}: {outcome.created} runs and {outcome.points} points added; "
        f"{outcome.running} stages at work, {outcome.pending} artifacts pending"
    )


@app.command()
def verify(context: typer.Context) -> None:
    """Re-hash every artifact of the current params."""
    params, layout = _project(context)
    from pipelines import housekeeping

    found = housekeeping.verify(params, layout)
    for stage in found.missing:
        typer.echo(f"not built: {stage.name} ({stage.artifact.relative_to(layout.root)})")
    if found.problems:
        raise typer.Exit(_tell(found.problems))
    typer.echo(f"ok: {len(found.intact)} artifacts match their cards")


@app.command()
def clean(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove checkpoints that nothing will go on from."""
    params, layout = _project(context)
    from pipelines import housekeeping

    removals = housekeeping.clean(params, layout, dry_run=dry_run)
    word = "would remove" if dry_run else "removed"
    for removal in removals:
        place = removal.path.relative_to(layout.root)
        typer.echo(f"{word} {place}: {removal.num_bytes:,} bytes, {removal.reason}")
    total = sum(removal.num_bytes for removal in removals)
    typer.echo(f"{word} {len(removals)} folders, {total:,} bytes")


if __name__ == "__main__":
    main()
