"""`kdci download`: what the command adds to the library's function."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kdci.data.datasets import download as library
from kdci.data.datasets.download import Source
from kdci.errors import UserError
from pipelines.commands.imports import download_data


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command("download")(download_data)
    app.command("other")(lambda: None)
    return app


def test_it_says_what_it_fetches_and_where_it_lies(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Source] = []

    def fetch(source: Source, path: Path) -> Path:
        asked.append(source)
        (path / source.folder).mkdir(exist_ok=True)
        return path / source.folder

    monkeypatch.setattr(library, "download", fetch)
    first = CliRunner().invoke(app, ["download", "cifar100", str(tmp_path)])
    again = CliRunner().invoke(app, ["download", "cifar100", str(tmp_path)])
    assert asked == [library.SOURCES["cifar100"]] * 2
    place = f"ok: {tmp_path}/cifar-100-python; data.path: {tmp_path}\n"
    assert first.output.endswith(place) and "169 MB" in first.output
    assert again.output == place


@pytest.mark.parametrize("name", ["imagenet", "tiny-imagenet", "../x"])
def test_other_datasets_are_not_offered(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only cifar10 and cifar100 are; see docs/data.md"):
        download_data(name, tmp_path)
    assert [*tmp_path.iterdir()] == []
