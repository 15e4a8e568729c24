"""Shipped presets are valid, and writing one keeps comments and a user's edits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kdci.config.params_file import load_params, read_yaml
from kdci.errors import UserError
from pipelines.params.edit import write_preset
from pipelines.params.presets import FOLDER, preset_file, preset_names, preset_text

NAMES = preset_names()


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


def test_lists_what_ships() -> None:
    assert {"digits", "digits-smoke", "cifar10-cpu"} <= set(NAMES)
    published = {name for name in NAMES if name.startswith("table")}
    files = [*(f"{name}.yaml" for name in {*NAMES} - published), "params.schema.json", "tables"]
    assert sorted(os.listdir(FOLDER)) == sorted(files)
    assert {file.stem for file in (FOLDER / "tables").iterdir()} == published


@pytest.mark.parametrize("name", NAMES)
def test_is_valid_and_named_as_its_file(name: str) -> None:
    assert load_params(preset_file(name)).preset == name


@pytest.mark.parametrize("name", NAMES)
def test_writes_the_file_as_it_ships(tmp_path: Path, name: str) -> None:
    file = tmp_path / "params.yaml"
    write_preset(name, file)
    assert file.read_bytes() == preset_file(name).read_bytes()
    assert os.listdir(tmp_path) == ["params.yaml"]


def test_data_goes_into_every_path_and_nothing_else_changes(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    write_preset("cifar10-cpu", file, data="/somewhere/else")
    plain, written = read_yaml(FOLDER / "cifar10-cpu.yaml"), read_yaml(file)
    assert written["data"]["path"] == "/somewhere/else"
    for tree in (plain, written):
        del tree["data"]["path"]
        for method in ("mosaick", "dfnd"):
            path = tree["methods"][method]["open_world"].pop("path")
            assert path == ("data" if tree is plain else "/somewhere/else") + "/open-world"
    assert written == plain
    assert comments(file.read_text()) == comments(preset_text("cifar10-cpu"))
    changed = set(file.read_text().splitlines()) - set(preset_text("cifar10-cpu").splitlines())
    assert len(changed) == 2  # of which one is there for two methods


@pytest.mark.parametrize(
    "data", ["a b", "x: y # z", "*star", "-dash", "'quoted\"", "тест", "no", "1e3", "~", "l\nl"]
)
def test_any_path_reads_back(data: str) -> None:
    for place in (data, f"/{data}/d"):
        tree = YAML(typ="safe").load(preset_text("cifar10-cpu", data=place))
        assert tree["data"]["path"] == place
        assert tree["methods"]["dfnd"]["open_world"]["path"] == f"{place}/open-world"


def test_a_relative_path_is_seen_from_where_the_stages_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "notes").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    file = tmp_path / "project" / "params.yaml"
    monkeypatch.chdir(file.parent)
    write_preset("cifar10-cpu", file, data="../shared")
    assert read_yaml(file)["data"]["path"] == "../shared"
    monkeypatch.chdir(file.parent / "notes")
    write_preset("cifar10-cpu", file, data="../../shared")
    assert read_yaml(file)["data"]["path"] == "../shared"


def test_a_preset_without_data_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data: preset digits reads no data folder"):
        write_preset("digits", tmp_path / "params.yaml", data="x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "hint"), [("digts", "did you mean 'digits'"), ("zzz", "one of cifar10-cpu, digits")]
)
def test_an_unknown_name_is_answered_with_the_known(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        write_preset(name, tmp_path / "params.yaml")


@pytest.mark.parametrize("name", ["../digits", "", ".", "presets/digits", "digits.yaml"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="unknown preset"):
        write_preset(name, tmp_path / "params.yaml")


@pytest.mark.parametrize("data", [None, "/a", "b c"])
def test_an_unedited_preset_is_replaced(tmp_path: Path, data: str | None) -> None:
    file = tmp_path / "params.yaml"
    write_preset("cifar10-cpu", file, data=data)
    write_preset("digits", file)
    assert file.read_text() == preset_text("digits")


@pytest.mark.parametrize(
    "edit",
    [
        ("seeds: [0]", "seeds: [0, 7]"),
        ("# measured: see docs/results.md", "# measured: 5 minutes here"),
        ("path: /a/open-world", "path: /b/open-world"),
        ("preset: cifar10-cpu", "preset: ["),
    ],
)
def test_an_edited_file_needs_force(tmp_path: Path, edit: tuple[str, str]) -> None:
    file = tmp_path / "params.yaml"
    write_preset("cifar10-cpu", file, data="/a")
    edited = file.read_text().replace(*edit)
    assert edited != file.read_text()
    file.write_text(edited)
    with pytest.raises(UserError, match="has edits") as caught:
        write_preset("digits", file)
    assert caught.value.exit_code == 2
    assert file.read_text() == edited
    write_preset("digits", file, force=True)
    assert file.read_text() == preset_text("digits")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"preset: mine\n"])
def test_a_file_of_another_kind_needs_force(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError):
        write_preset("digits", file)
    assert file.read_bytes() == content
