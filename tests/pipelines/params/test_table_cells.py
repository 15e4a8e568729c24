"""The tables' presets on datasets in their layouts: `kdci check`, and cells from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.store.layout import Layout
from pipelines import cli
from pipelines.checking.checks import find_problems
from pipelines.params.edit import with_values, write_preset
from tests.pipelines._datasets import write_all
from tests.pipelines._projects import new_project, run_in
from tests.pipelines.params.test_table_presets import TABLES

FIVE_STEPS = {
    "distill.num_snapshots": 1,
    "dictionary.num_prototypes": 4,
    "runtime.threads": 1,
    "runtime.precision": "fp32",  # and the format: nothing is left to be measured
    "runtime.memory_format": "channels_last",
    "evaluate.batch_size": 16,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


def look_over(root: Path) -> list[KdciError]:
    params = load_params(root / "params.yaml")
    return find_problems(params, Layout(root, params.preset))


@pytest.mark.parametrize("name", TABLES)
def test_check_passes_where_the_data_is_there(name: str, data: Path, tmp_path: Path) -> None:
    write_preset(name, tmp_path / "params.yaml", data=str(data))
    problems = look_over(tmp_path)
    # As many images as were published are not written here: that alone is told.
    chosen = [name for name in TABLES[name].methods if name in ("mosaick", "dfnd")]
    assert [problem.subject for problem in problems] == [
        f"methods.{method}.num_selected" for method in chosen
    ]
    text = (tmp_path / "params.yaml").read_text()
    selected = {f"methods.{method}.num_selected": 32 for method in chosen}
    small = {f"recipes.{method}.batch_size": 8 for method in chosen if method == "dfnd"}
    small |= {"dictionary.num_prototypes": 4}
    (tmp_path / "params.yaml").write_text(with_values(text, {**selected, **small}))
    assert look_over(tmp_path) == []


@pytest.mark.parametrize("name", ["table1-cifar100", "table2", "table3"])
def test_check_tells_what_is_expected_where_it_is_not(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_preset(name, tmp_path / "params.yaml", data=str(tmp_path / "empty"))
    assert cli.run(["--root", str(tmp_path), "check"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("kdci: error: ") for line in lines)
    assert any("expected PATH/" in line for line in lines), lines


def project(root: Path, name: str, data: Path, values: dict[str, Any]) -> Path:
    """Return a project with a preset cut down to one pair and one method."""
    new_project(root)
    file = root / "params.yaml"
    write_preset(name, file, data=str(data))
    file.write_text(with_values(file.read_text(), {**FIVE_STEPS, **values}))
    return root


def finished(root: Path, *, table: str, cell: tuple[str, str, str], steps: int) -> None:
    """Check what a finished table's cell left, and what the report says of it."""
    rows = json.loads((root / "report" / "results.json").read_text())
    assert {row["variant"] for row in rows} == {"vanilla", "kdci"}
    for row in rows:
        assert (row["teacher"], row["student"], row["method"]) == cell
        assert row["num_steps"] == steps
        assert row["accuracy"] is not None and 0 <= row["accuracy"] <= 100
        assert row["budget"] < 0.01
    report = (root / "report" / "report.md").read_text()
    assert table in report and "not run" in report


@pytest.mark.slow
def test_a_cell_of_table_1(data: Path, tmp_path: Path) -> None:
    root = project(
        tmp_path / "p",
        "table1-cifar10",
        data,
        {
            "grid.teachers": ["wrn-40-2"],
            "grid.pairs": [{"teacher": "wrn-40-2", "student": "wrn-16-1"}],
            "grid.methods": ["fast"],
            "budget": 5 / 80_000,
            "teacher.num_epochs": 1,
            "teacher.batch_size": 8,
            "methods.fast.batch_size": 8,
            "recipes.fast.batch_size": 8,
        },
    )
    run_in(root, "kdci", "check")
    run_in(root, "dvc", "repro")
    assert "didn't change, skipping" in run_in(root, "dvc", "repro")
    finished(root, table="Table 1", cell=("wrn-40-2", "wrn-16-1", "fast"), steps=5)


@pytest.mark.slow
def test_a_cell_of_table_2(data: Path, tmp_path: Path) -> None:
    root = project(
        tmp_path / "p",
        "table2",
        data,
        {
            "grid.methods": ["deepinv"],
            "budget": 5 / 100_000,
            "teacher.num_epochs": 1,
            "teacher.batch_size": 8,
            "methods.deepinv.batch_size": 8,
            "methods.deepinv.num_steps": 5,
            "recipes.deepinv.batch_size": 8,
        },
    )
    run_in(root, "kdci", "check")
    run_in(root, "dvc", "repro")
    finished(root, table="Table 2", cell=("resnet-34", "resnet-18", "deepinv"), steps=5)


@pytest.mark.slow
def test_a_cell_of_table_3(data: Path, tmp_path: Path) -> None:
    """Its teacher comes as torchvision's weights do, with an accuracy that `evaluate` finds."""
    torch.manual_seed(0)
    root = project(
        tmp_path / "p",
        "table3",
        data,
        {
            "runtime.precision": "auto",  # a thousand test images: bf16, where it is native
            "grid.students": ["mobilenetv2"],
            "grid.methods": ["dfnd"],
            "budget": 5 / 77_352,
            "teacher.artifact": "teachers/{teacher}",
            "methods.dfnd.num_selected": 32,
            "recipes.dfnd.batch_size": 8,
            "methods.dfnd.score_batch_size": 8,
        },
    )
    weights = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(weights, root / "resnet50.pth")
    told = ["--backbone", "resnet-50", "--dataset", "imagenet", "--to", "teachers/resnet-50"]
    run_in(root, "kdci", "import-teacher", "resnet50.pth", *told)
    run_in(root, "kdci", "check")
    run_in(root, "dvc", "repro")
    finished(root, table="Table 3", cell=("resnet-50", "mobilenetv2", "dfnd"), steps=5)
