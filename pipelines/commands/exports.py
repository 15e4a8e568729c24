"""The command that writes a student for use elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdci.errors import UserError
from pipelines.commands.shared import project

if TYPE_CHECKING:
    from kdci.config.params import Params
    from kdci.exporting.release import Release
    from kdci.store.layout import Layout


class Form(StrEnum):
    """What an exported student answers with."""

    backbone = "backbone"
    compensated = "compensated"


def export(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="CELL",
            help="Name of a cell, parts of it (fast/kdci/pool0-seed1), or a student's folder; "
            "none: the only student there is.",
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to write; else exports/CELL.")] = None,
    deploy: Annotated[
        Form | None, typer.Option(help="What it answers with; else as evaluate.deploy says.")
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Of pt2, onnx (needs kdci[export]) and mlflow.")
    ] = "pt2,onnx,mlflow",
    force: Annotated[bool, typer.Option("--force", help="Replace an export.")] = False,
    data_license: Annotated[
        str | None, typer.Option(help="Licence of the teacher's data, for the model card.")
    ] = None,
    model_license: Annotated[
        str | None,
        typer.Option("--license", help="Licence of the weights, as Hugging Face calls it."),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of this method or known shift.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of this arm.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Of this teacher backbone.")] = None,
    student: Annotated[str | None, typer.Option(help="Of this student backbone.")] = None,
    pool_seed: Annotated[int | None, typer.Option(help="Of this pool.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of this student seed.")] = None,
) -> None:
    """Write a student as pt2, ONNX and MLflow model, checked against it, with a model card."""
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
    chosen = exporting.choose(params, layout, what, axes)
    root = Path.cwd() if layout is None else layout.root
    folder = to or root / exporting.EXPORTS / chosen.cell.name
    form = deploy.value if deploy else exporting.default_form(params, chosen.folder)
    release = _export(
        chosen.folder,
        folder,
        deploy=form,
        formats=formats,
        force=force,
        licenses=(model_license, data_license),
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


def _export(
    student: Path,
    folder: Path,
    *,
    deploy: str,
    formats: str,
    force: bool,
    licenses: tuple[str | None, str | None],
) -> Release:
    from kdci.exporting.export import export_student, require_place
    from kdci.exporting.release import UNKNOWN_LICENSE, UNSTATED, Terms
    from pipelines.serving.exporting import chosen_formats

    require_place(folder, force=force)
    of_model, of_data = licenses
    return export_student(
        student,
        folder,
        deploy=deploy,
        formats=chosen_formats(formats),
        terms=Terms(of_model or UNKNOWN_LICENSE, " ".join((of_data or UNSTATED).split())),
        force=force,
    )


def _show(release: Release, folder: Path) -> None:
    from kdci.exporting.footprint_table import footprint_note, footprint_rows
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
