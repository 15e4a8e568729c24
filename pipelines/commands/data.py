"""Commands about original data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdci.errors import UserError


def download_data(
    name: Annotated[str, typer.Argument(help="cifar10 or cifar100.")],
    path: Annotated[Path, typer.Argument(help="Folder to unpack it in.")],
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
