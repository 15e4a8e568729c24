"""The console command `kdci`: a thin layer over modules that are imported when they are used.

Everything also works without it: `dvc repro`, `python -m stages.X`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kdci.errors import KdciError, StorageError, UserError
from pipelines.commands import care, exports, imports, project, running
from pipelines.commands.shared import Options, tell

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
        return tell([_worded(error)])


def _worded(error: Any) -> KdciError:
    if isinstance(error, KdciError):
        return error
    if isinstance(error, OSError):
        place, what = str(error.filename or "file system"), error.strerror or str(error)
        return StorageError(place, what, "mend it and try again")
    return UserError("command line", error.format_message().rstrip("."), "see `kdci --help`")


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


app.command("check")(project.check)
app.command("list")(project.list_names)
app.command("init")(project.init)
app.command("preset")(project.preset)
app.command("schema")(project.schema)
app.command("show")(project.show)
app.command("download")(imports.download_data)
app.command("import-teacher")(imports.import_teacher)
app.command("export")(exports.export)
app.command("run")(running.run_pipeline)
app.command("sweep")(running.sweep)
app.command("promote")(running.promote)
app.command("explain")(care.explain_stages)
app.command("doctor")(care.doctor)
app.command("sync")(care.sync)
app.command("verify")(care.verify)
app.command("clean")(care.clean)
app.command("migrate")(care.migrate)


if __name__ == "__main__":
    main()
