"""Commands about teachers that were trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdci.errors import UserError
from pipelines.commands.shared import project_root, warn


def import_teacher(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The checkpoint: torch's zip or safetensors.")],
    backbone: Annotated[
        str, typer.Option(help="One of `kdci list backbones`, or torchvision-NAME, timm-NAME.")
    ],
    dataset: Annotated[str, typer.Option(help="One of `kdci list datasets`, or custom.")],
    classes: Annotated[int | None, typer.Option(help="Else told from the last layer.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side in pixels, of custom data.")] = None,
    channels: Annotated[int | None, typer.Option(help="Else as many as means.")] = None,
    mean: Annotated[str | None, typer.Option(help="Per channel on [0, 1]: 0.49,0.48,0.45.")] = None,
    std: Annotated[str | None, typer.Option(help="Per channel: 0.20,0.20,0.20.")] = None,
    class_names: Annotated[str | None, typer.Option(help="In label order: cat,dog,ship.")] = None,
    stem: Annotated[str, typer.Option(help="auto, cifar or imagenet.")] = "auto",
    to: Annotated[
        Path | None, typer.Option(help="Folder; else teachers/<name of the file>.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Refuse the file if its hash is another.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset, to measure the accuracy.")] = None,
    key: Annotated[str | None, typer.Option(help="Where the state dict is in the file.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a teacher that is there.")
    ] = False,
) -> None:
    """Make a teacher of a checkpoint, read in quarantine; write nothing if a check fails."""
    from pipelines.importing.options import Options

    options = Options(
        file=file,
        backbone=backbone,
        dataset=dataset,
        root=_root(context),
        num_classes=classes,
        image_size=image_size,
        channels=channels,
        mean=_values(mean, "--mean"),
        std=_values(std, "--std"),
        class_names=_names(class_names),
        stem=stem,
        to=to,
        sha256=sha256,
        data=data,
        key=key,
        force=force,
    )
    from pipelines.importing.intake import import_teacher as run

    imported = run(options)
    from pipelines.importing.report import report_lines, warnings

    for line in report_lines(options, imported):
        typer.echo(line)
    for warning in warnings(options, imported):
        warn(warning)


def _root(context: typer.Context) -> Path:
    """Return the project folder; outside of a project, where the command runs."""
    try:
        return project_root(context)
    except UserError:
        if context.obj.root is not None:
            raise
        return Path.cwd()


def _names(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(name.strip() for name in text.split(","))


def _values(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        what = f"{text!r} is no list of numbers"
        raise UserError(option, what, "write 0.49,0.48,0.45") from None
