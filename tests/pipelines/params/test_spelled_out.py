"""A params file that leaves to defaults what DVC itself has to read is told by `kdci check`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from kdci.config.params_file import load_params, read_yaml
from kdci.store.layout import Layout
from pipelines.checking.checks import find_problems
from pipelines.params.presets import FOLDER, preset_file, preset_names
from pipelines.params.spelled_out import check_spelled_out
from tests.project_code import ROOT


def told(root: Path, tree: dict[str, Any]) -> dict[str, str]:
    """Return the mends by key."""
    shutil.copy(ROOT / "dvc.yaml", root)
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(tree, file)
    params = load_params(root / "params.yaml")
    problems = find_problems(params, Layout(root, params.preset))
    assert all("DVC" in problem.what for problem in problems)
    return {problem.subject: problem.fix for problem in problems}


def test_what_an_earlier_version_did_not_have_is_told_with_its_default(tmp_path: Path) -> None:
    tree = read_yaml(FOLDER / "digits-smoke.yaml")
    assert told(tmp_path, tree) == {}
    for key in ("pairs", "other_pairs"):  # DVC multiplies no lists out
        del tree["grid"][key]
    for key in ("backbone", "budget"):
        del tree[key]
    del tree["data"]["facts"]
    assert told(tmp_path, tree) == {
        "backbone": "add backbone: {stem: auto}",
        "budget": "add budget: 1.0",
        "data.facts": "add facts: null",
    }


def test_what_no_stage_of_the_grid_reads_may_be_left_out(tmp_path: Path) -> None:
    tree = read_yaml(FOLDER / "digits-smoke.yaml")
    tree.pop("intervention", None)
    assert told(tmp_path, tree) == {}
    tree["grid"]["arms"] = ["logit_adjusted"]
    assert list(told(tmp_path, tree)) == ["intervention.tau"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_spell_everything_out(tmp_path: Path, name: str) -> None:
    shutil.copy(preset_file(name), tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    params = load_params(tmp_path / "params.yaml")
    assert list(check_spelled_out(params, Layout(tmp_path, params.preset))) == []
