"""Commands about what comes from elsewhere: data, and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from kdci.errors import UserError
from pipelines.commands.shared import listed, root_if_any, warn


def download_data(
    name: Annotated[str, Argument(help="cifar10 or cifar100.")],
    path: Annotated[Path, Argument(help="Folder to unpack it in.")],
) -> None:
    """Fetch a dataset from its author's site, compare its SHA-256, unpack it."""
    from kdci.data.datasets.download import SOURCES, download

    if name not in SOURCES:
        what = f"{name!r} is not offered for download"
        raise UserError("dataset", what, f"only {' and '.join(SOURCES)} are; see docs/data.md")
    source = SOURCES[name]
    if not (path / source.folder).exists():
        typer.echo(f"fetching {source.url}, {source.num_bytes / 1e6:.0f} MB")
    place = download(source, path)
    typer.echo(f"ok: {place}; data.path: {path}")


def import_teacher(
    context: typer.Context,
    file: Annotated[Path, Argument(help="The checkpoint: torch's zip or safetensors.")],
    backbone: Annotated[
        str, Option(help="One of `kdci list backbones`, or torchvision-NAME, timm-NAME.")
    ],
    dataset: Annotated[str, Option(help="One of `kdci list datasets`, or custom.")],
    classes: Annotated[int | None, Option(help="Else told from the last layer.")] = None,
    image_size: Annotated[int | None, Option(help="Side in pixels, of custom data.")] = None,
    channels: Annotated[int | None, Option(help="Else as many as means.")] = None,
    mean: Annotated[str | None, Option(help="Per channel on [0, 1]: 0.49,0.48,0.45.")] = None,
    std: Annotated[str | None, Option(help="Per channel: 0.20,0.20,0.20.")] = None,
    class_names: Annotated[str | None, Option(help="In label order: cat,dog,ship.")] = None,
    stem: Annotated[str, Option(help="auto, cifar or imagenet.")] = "auto",
    to: Annotated[Path | None, Option(help="Folder; else teachers/<name of the file>.")] = None,
    sha256: Annotated[str | None, Option(help="Refuse the file if its hash is another.")] = None,
    data: Annotated[Path | None, Option(help="The dataset, to measure the accuracy.")] = None,
    key: Annotated[str | None, Option(help="Where the state dict is in the file.")] = None,
    force: Annotated[bool, Option("--force", help="Replace a teacher that is there.")] = False,
) -> None:
    """Make a teacher of a checkpoint, read in quarantine; write nothing if a check fails."""
    from pipelines.importing.options import Options

    options = Options(
        file=file,
        backbone=backbone,
        dataset=dataset,
        root=root_if_any(context) or Path.cwd(),
        num_classes=classes,
        image_size=image_size,
        channels=channels,
        mean=_of_channels(mean, "--mean"),
        std=_of_channels(std, "--std"),
        class_names=() if class_names is None else tuple(n.strip() for n in class_names.split(",")),
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


def _of_channels(text: str | None, option: str) -> tuple[float, ...] | None:
    values = listed(text, option, float, "0.49,0.48,0.45")
    return None if values is None else tuple(values)
