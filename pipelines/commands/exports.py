"""The command that writes a student for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from kdci.errors import UserError
from pipelines.commands.shared import project

if TYPE_CHECKING:
    from kdci.config.params import Params
    from kdci.exporting.release import Release
    from kdci.store.layout import Layout


def export(
    context: typer.Context,
    what: Annotated[
        str | None,
        Argument(
            metavar="CELL",
            help="Name of a cell, parts of it (fast/kdci/pool0-seed1), or a student's folder; "
            "none: the only student there is.",
        ),
    ] = None,
    to: Annotated[Path | None, Option(help="Folder to write; else exports/CELL.")] = None,
    deploy: Annotated[
        Literal["backbone", "compensated"] | None,
        Option(help="What it answers with; else as evaluate.deploy says."),
    ] = None,
    formats: Annotated[
        str, Option(help="Of pt2, onnx (needs kdci[export]) and mlflow.")
    ] = "pt2,onnx,mlflow",
    force: Annotated[bool, Option("--force", help="Replace an export.")] = False,
    data_license: Annotated[
        str | None, Option(help="Licence of the teacher's data, for the model card.")
    ] = None,
    model_license: Annotated[
        str | None,
        Option("--license", help="Licence of the weights, as Hugging Face calls it."),
    ] = None,
    method: Annotated[str | None, Option(help="Of this method or known shift.")] = None,
    variant: Annotated[str | None, Option(help="Of this arm.")] = None,
    teacher: Annotated[str | None, Option(help="Of this teacher backbone.")] = None,
    student: Annotated[str | None, Option(help="Of this student backbone.")] = None,
    pool_seed: Annotated[int | None, Option(help="Of this pool.")] = None,
    seed: Annotated[int | None, Option(help="Of this student seed.")] = None,
) -> None:
    """Write a student as pt2, ONNX and MLflow model, checked against it, with a model card."""
    from kdci.exporting.export import export_student, require_place
    from kdci.exporting.release import UNKNOWN_LICENSE, UNSTATED, Terms
    from pipelines.serving import exporting

    params, layout = _project(context, what)
    axes = {
        "teacher": teacher,
        "student": student,
        "method": method,
        "variant": variant,
        "pool_seed": pool_seed,
        "seed": seed,
    }
    artifact, cell = exporting.choose(params, layout, what, axes)
    root = Path.cwd() if layout is None else layout.root
    folder = to or root / exporting.EXPORTS / cell.name
    form = deploy or exporting.default_form(params, artifact)
    require_place(folder, force=force)
    release = export_student(
        artifact,
        folder,
        deploy=form,
        formats=exporting.chosen_formats(formats),
        terms=Terms(model_license or UNKNOWN_LICENSE, " ".join((data_license or UNSTATED).split())),
        force=force,
    )
    _show(release, folder)


def _project(context: typer.Context, what: str | None) -> tuple[Params | None, Layout | None]:
    """Return the project; none is needed for a student's folder."""
    try:
        return project(context)
    except UserError:
        if what is None or not (Path(what) / "card.json").is_file():
            raise
        return None, None


def _show(release: Release, folder: Path) -> None:
    from kdci.exporting.footprint import footprint_note, footprint_rows
    from kdci.reporting.text.tables import aligned

    cell = release.lineage.cell
    here = Path.cwd()
    place = folder.relative_to(here) if folder.is_relative_to(here) else folder
    typer.echo(f"{cell.name} ({release.deploy}) is in {place}")
    for name, facts in release.formats.items():
        difference = facts["parity"]["max_abs_difference"]
        typer.echo(f"{name}: {facts['place']}, at most {difference:.1e} from the student")
    for line in aligned(footprint_rows(release.footprint)):
        typer.echo(line)
    typer.echo(footprint_note(release.footprint))
