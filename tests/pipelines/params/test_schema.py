"""The JSON schema of params.yaml: editors find it, and it takes what the models take."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kdci.config.params_file import read_yaml
from pipelines.cli import run
from pipelines.params.new_project import new_project
from pipelines.params.presets import FOLDER, preset_file, preset_names, preset_text
from pipelines.params.schema import place_of, schema_text

SHIPPED = FOLDER / "params.schema.json"
RENEW = "kdci schema pipelines/presets/params.schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(schema_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_shipped_schema_is_that_of_the_models() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == schema_text(), f"renew it: {RENEW}"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_fits_it(name: str, validator: Any) -> None:
    tree = read_yaml(preset_file(name))
    assert [error.message for error in validator.iter_errors(tree)] == []


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("compensation", "fusoin", "identity"),
        ("compensation", "fusion", "sum"),
        ("compensation", "lambda", "fixed"),
        ("grid", "arms", ["kdci_othre"]),
        ("grid", "methods", ["noise"]),
        ("grid", "teachers", ["wrn-16"]),
        ("grid", "seeds", [-1]),
        ("data", "name", "cifar"),
    ],
)
def test_it_sees_what_the_models_refuse(block: str, key: str, value: Any, validator: Any) -> None:
    tree = read_yaml(FOLDER / "digits.yaml")
    tree[block][key] = value
    assert len(list(validator.iter_errors(tree))) == 1


def test_it_takes_backbones_of_other_libraries(validator: Any) -> None:
    tree = read_yaml(FOLDER / "digits.yaml")
    tree["grid"]["students"] = ["timm-mobilenetv3_small_050"]
    assert validator.is_valid(tree)


def test_it_explains_keys_by_their_descriptions() -> None:
    scale = json.loads(schema_text())["$defs"]["CompensationBlock"]["properties"]["scale"]
    assert scale["description"].startswith("Factor on F(z)")


@pytest.mark.parametrize("options", [(), ("--budget", "0.5")])
def test_the_params_of_a_preset_point_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert run(["preset", "digits", *options]) == 0
    line = (tmp_path / "params.yaml").read_text().splitlines()[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", line)
    assert found and (tmp_path / found[1]).read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_points_to_it(name: str) -> None:
    assert preset_text(name).startswith("# yaml-language-server: $schema=.kdci/")


def test_the_command_writes_it_there_or_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert run(["schema"]) == run(["schema", "here.json"]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / ".kdci/params.schema.json"),
        "here.json",
    ]
    assert (tmp_path / "here.json").read_text(encoding="utf-8") == schema_text()


def test_a_new_experiment_has_it(tmp_path: Path) -> None:
    new_project(tmp_path / "x", preset="digits-smoke")
    assert place_of(tmp_path / "x").read_text(encoding="utf-8") == schema_text()
