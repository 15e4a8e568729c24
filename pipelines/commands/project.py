"""Commands about the project: its params, presets and results."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from pipelines.commands.shared import project, project_root, tell


def check(
    context: typer.Context,
    estimate: Annotated[
        bool,
        Option("--estimate", help="Measure what a run needs: data, disk, memory, hours."),
    ] = False,
    seconds: Annotated[
        float, Option(help="After so many --estimate begins no further measurement.", min=1)
    ] = 600.0,
) -> None:
    """Validate params, data and teacher; run nothing."""
    params, layout = project(context)
    from pipelines.checking.checks import find_problems, summary
    from pipelines.graph.current import current_graph

    problems = find_problems(params, layout)
    exit_code = tell(problems) if problems else 0
    if not problems:
        current_graph(layout.root, params)
    for line in () if problems else summary(params, layout):
        typer.echo(line)
    if estimate:  # whoever has no data yet wants to know what they will need, too
        from pipelines.checking.estimating.estimate import estimate as estimated
        from pipelines.checking.estimating.text import estimate_lines

        found = estimated(params, layout, seconds=seconds, tell=partial(typer.echo, err=True))
        for line in estimate_lines(found, layout.root):
            typer.echo(line)
    if exit_code:
        raise typer.Exit(exit_code)


def list_names(
    what: Annotated[
        Literal["methods", "backbones", "arms", "datasets", "presets"],
        Argument(help="What to list."),
    ],
) -> None:
    """List names that params.yaml and `kdci preset` take, one a line."""
    from kdci.config.catalog import BACKBONE_NAMES, CUSTOM, DATASETS
    from kdci.deconfounding.arms import ARMS
    from kdci.substitution.registry import method_names
    from pipelines.params.presets import preset_names

    names = {
        "methods": method_names(),
        "backbones": BACKBONE_NAMES,
        "arms": ARMS,
        "datasets": [*DATASETS, CUSTOM],
        "presets": preset_names(),
    }
    typer.echo("\n".join(names[what]))
    if what == "backbones":
        # Not among the names, which scripts read.
        also = "also any classifier of torchvision and timm, as torchvision-NAME and timm-NAME"
        typer.echo(also, err=True)


def preset(
    context: typer.Context,
    name: Annotated[str, Argument(help="One of `kdci list presets`.")],
    data: Annotated[str | None, Option(help="Folder that holds the preset's data.")] = None,
    teacher: Annotated[
        str | None,
        Option(help="Folder of a finished teacher to adopt: what `import-teacher` wrote."),
    ] = None,
    student: Annotated[str | None, Option(help="The student's backbone.")] = None,
    budget: Annotated[
        float | None, Option(help="Factor on the steps of pools and students.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace an edited params.yaml.")] = False,
) -> None:
    """Write a preset's params.yaml."""
    from pipelines.graph.current import current_graph
    from pipelines.params.edit import write_preset
    from pipelines.params.schema import place_of, write_schema

    root = project_root(context)
    file = root / "params.yaml"
    write_preset(
        name, file, data=data, teacher=teacher, student=student, budget=budget, force=force
    )
    write_schema(place_of(root))
    current_graph(root)
    typer.echo(f"{file} is preset {name} now; `kdci check` looks it over, `dvc repro` runs it")


def schema(
    context: typer.Context,
    file: Annotated[
        Path | None,
        Argument(help="Where to write it; else where the first line of params.yaml points."),
    ] = None,
) -> None:
    """Write the JSON schema of params.yaml, with which editors complete and check it."""
    from pipelines.params.schema import place_of, write_schema

    place = file or place_of(project_root(context))
    write_schema(place)
    typer.echo(place)


def init(
    folder: Annotated[Path, Argument(help="Where the experiment is to live.")],
    preset: Annotated[str, Option(help="One of `kdci list presets`.")] = "digits",
    data: Annotated[str | None, Option(help="Folder that holds the preset's data.")] = None,
) -> None:
    """Make an experiment in a folder of its own: params, stages, Git and DVC."""
    from pipelines.params.new_project import new_project

    for made in new_project(folder, preset=preset, data=data):
        typer.echo(made)
    typer.echo(f"{folder} is an experiment now: `cd {folder}`, then `kdci check` and `kdci run`")


def show(context: typer.Context) -> None:
    """Print the table of results again."""
    from kdci.reporting.results import load_rows
    from kdci.reporting.text.tables import terminal_table

    typer.echo(terminal_table(load_rows(project_root(context) / "report" / "results.json")))
