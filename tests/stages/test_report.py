from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from kdci.config.params import Data, Grid
from kdci.config.params_file import load_params
from kdci.errors import IntegrityError
from kdci.reporting.figures.drawing import DrawnFigure
from kdci.store.artifacts import new_artifact
from kdci.store.layout import Layout, all_cells, cells
from stages.report import report
from tests.project_code import ROOT

TEACHER, STUDENT = "wrn-16-1", "wrn-10-1"
VANILLA = {0: 90.0, 1: 80.0}
KDCI = {0: 90.5, 1: 82.0}
K = 10


@pytest.fixture
def params():
    preset = load_params(ROOT / "pipelines/presets/digits.yaml")
    grid = Grid(teachers=[TEACHER], students=[STUDENT], methods=["fast", "dfnd"], seeds=[0, 1])
    return preset.model_copy(update={"preset": "tiny", "grid": grid})


@pytest.fixture
def layout(tmp_path, params):
    """Everything of Fast is there; of DFND only the pool."""
    layout = Layout(tmp_path, "tiny")
    with new_artifact(layout.teacher(TEACHER), kind="teacher", card=_card(accuracy=98.25)):
        pass
    _write_pool(layout, "fast", classes=[0, 1, 1, 2])
    _write_pool(layout, "dfnd", classes=[3])
    _write_dictionary(layout)
    for cell in cells(params.grid):
        if cell.method == "fast":
            _write_student(layout, cell)
    _write_evaluation(layout, params, tested=True)
    return layout


@pytest.fixture
def no_drawing(monkeypatch):
    """Drawing takes seconds; what is drawn is for one test here and for test_figures."""
    drawn = [DrawnFigure("overview.png", "Overview", "All at a glance.", b"png")]
    monkeypatch.setattr("kdci.reporting.figures.drawing.draw_figures", lambda evidence: drawn)


def _card(**facts):
    runtime = {"device": "cpu", "threads": 1, "precision": "fp32"}
    return {"facts": facts, "runtime": runtime, "code": {"revision": "f00d", "hash": "0"}}


def _write_pool(layout, method, classes):
    counts = np.bincount(classes, minlength=K)
    card = _card(
        method=method,
        teacher=TEACHER,
        num_images=len(classes),
        num_holdout=1,
        num_open_world=0,
        proportions=(counts / counts.sum()).tolist(),
        confidence=0.9,
        missing_classes=np.flatnonzero(counts == 0).tolist(),
        skipped={},
    )
    with new_artifact(layout.pool(TEACHER, method, 0), kind="pool", card=card) as draft:
        np.save(draft.folder / "images.npy", np.full((len(classes), 1, 16, 16), 128, np.uint8))
        logits = torch.nn.functional.one_hot(torch.tensor(classes), K).float() * 5
        draft.save_tensors("predictions.safetensors", {"logits": logits})


def _write_dictionary(layout):
    card = _card(
        space="logits", requested=2, num_prototypes=2, dimension=K, sizes=[3, 1], spread=[0, 0],
        num_predictions=4, teacher=TEACHER, num_classes=K, top_class=[1, 0],
    )  # fmt: skip
    path = layout.dictionary(TEACHER, "fast", 0)
    with new_artifact(path, kind="dictionary", card=card) as draft:
        tensors = {"prototypes": torch.eye(2, K), "proportions": torch.tensor([0.75, 0.25])}
        draft.save_tensors("dictionary.safetensors", tensors)


def _write_student(layout, cell, budget=None):
    card = _card(**cell.asdict(), num_steps=40, batch_size=8, num_images=4)
    card["params"] = {"recipes.fast": {"num_epochs": 4, "steps_per_epoch": 10}}
    if budget is not None:
        card["params"]["budget"] = budget
    with new_artifact(layout.student(cell), kind="student", card=card):
        pass
    timing = layout.timing(layout.student(cell))
    timing.parent.mkdir(parents=True, exist_ok=True)
    times = {"seconds": 9.0, "loop_seconds": 2.0 + cell.seed, "peak_memory_bytes": 2**30}
    timing.write_text(json.dumps(times))


def _write_evaluation(layout, params, *, tested, method="fast", dataset="digits"):
    rows, curves, predictions = [], [], {"expected": np.ones(8, np.int16)}
    for cell in all_cells(params.grid):
        if cell.method != method:
            continue
        kdci = cell.variant == "kdci"
        # Vanilla is wrong on image 0, the others on 1 and 2.
        predictions[f"{cell.variant}/{cell.replicate}/backbone"] = np.array(
            [0, *[1] * 7] if cell.variant == "vanilla" else [1, 0, 0, *[1] * 5], np.int16
        )
        accuracy = (KDCI if kdci else VANILLA)[cell.seed]
        values = {
            "accuracy_backbone": accuracy if tested else None,
            "accuracy_compensated": accuracy - 1 if tested and kdci else None,
            "agreement_backbone": accuracy - 20,
            "agreement_compensated": accuracy - 21 if kdci else None,
            "calibration_error_backbone": 5.0 + cell.seed if tested else None,
            "marginal_bias_backbone": 0.25 if tested else None,
        }
        rows.append(
            {
                **cell.asdict(),
                "preset": "tiny",
                "dataset": dataset,
                "accuracy": values["accuracy_backbone"],
                **values,
                "teacher_accuracy": 98.25 if tested else None,
                "num_steps": 40,
                "proportions_backbone": [0.1] * K,
                "deploy": "backbone",
            }
        )
        curves.append({**cell.asdict(), "points": [{"step": 20, **values}, {"step": 40, **values}]})
    stale = {**rows[0], "seed": 77}  # of a grid that had more seeds
    ((teacher, student),) = params.grid.all_pairs
    facts = {"teacher": teacher, "student": student, "method": method, "num_cells": len(rows)}
    card = _card(**facts, evaluated_on="test" if tested else "holdout")
    path = layout.evaluation(teacher, student, method)
    with new_artifact(path, kind="evaluation", card=card) as draft:
        draft.save_json("cells.json", [stale, *rows])
        draft.save_json("curves.json", curves)
        pool = {"total_variation": 0.6, "entropy": 1.04, "confidence": 0.9}
        shift = {**pool, "pool_seed": 0, "teacher_fid": 12.25 if tested else None}
        draft.save_json("pools.json", [{**shift, "pool_seed": 77}, shift])
        if tested:
            tensors = {name: torch.from_numpy(said) for name, said in predictions.items()}
            draft.save_tensors("predictions.safetensors", tensors)
        np.save(draft.folder / "examples.npy", np.zeros((2, 1, 16, 16), np.uint8))
        label = 3 if tested else None
        said = {"label": label, "teacher": 3, "vanilla": 3, "kdci": 5, "group": "lost"}
        examples = [said] * 2
        draft.save_json("examples.json", examples)


def test_report_holds_rows_metrics_curves_text_and_figures(params, layout):
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert [(row["variant"], row["seed"], row["seconds"]) for row in rows] == [
        ("vanilla", 0, 2.0),
        ("vanilla", 1, 3.0),
        ("kdci", 0, 2.0),
        ("kdci", 1, 3.0),
    ]
    metrics = json.loads((layout.report / "metrics.json").read_text())
    assert metrics["fast"]["vanilla"] == 85.0
    assert metrics["fast"]["kdci"] == 86.25
    assert metrics["fast"]["difference"] == 1.25
    assert metrics["teacher"] == {TEACHER: 98.25}
    text = (layout.report / "report.md").read_text()
    assert "4 of the grid's 8 students" in text
    assert "f00d" in text
    assert "| DFND, pool 0 | wrn-16-1 | 1 | 0.90 |" in text
    figures = {file.name for file in (layout.report / "figures").iterdir()}
    assert "overview.png" in figures
    assert all(f"figures/{name}" in text for name in figures)


@pytest.mark.usefixtures("no_drawing")
def test_curves_are_in_long_form_with_a_line_a_point(params, layout):
    report(params, layout)
    with (layout.report / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert len(points) == 2 * (2 + 2 * 2), "two steps of two vanilla and two twofold KDCI students"
    assert points[0] == {
        "step": "20", "accuracy": "90.0", "agreement": "70.0", "method": "fast",
        "variant": "vanilla", "teacher": TEACHER, "student": STUDENT, "replicate": "pool0-seed0",
        "budget": "1.0",
    }  # fmt: skip
    compensated = [point for point in points if point["variant"] == "kdci compensated"]
    assert {point["accuracy"] for point in compensated} == {"89.5", "81.0"}


@pytest.mark.usefixtures("no_drawing")
def test_shift_and_mcnemar_are_of_what_evaluate_left(params, layout):
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert [row["calibration_error_backbone"] for row in rows] == [5.0, 6.0, 5.0, 6.0]
    assert rows[0]["marginal_bias_backbone"] == 0.25
    assert rows[2]["marginal_bias_compensated"] is None
    text = (layout.report / "report.md").read_text()
    assert "| Fast, pool 0 | wrn-16-1 | 0.60 | 1.04 | 90.0 % | 12.2 |" in text
    assert "pool 77" not in text, "of a grid that had more pools"
    assert "| Fast | KDCI | 25.0 ± 0.0 | 0.0 (0.0 to 0.0) |" in text
    assert "| Fast | KDCI | 0 | 1 | 2 | 1 | 1.000 |" in text  # b = 2, c = 1


@pytest.mark.usefixtures("no_drawing")
def test_arms_and_known_shifts_are_reported_apart_from_methods(params, layout):
    grid = params.grid.model_copy(
        update={
            "arms": ("class_balanced",),
            "shifts": ("blur",),
            "shift_arms": ("vanilla", "class_balanced"),
        }
    )
    params = params.model_copy(update={"grid": grid})
    for method in ("fast", "blur"):
        _write_evaluation(layout, params, tested=True, method=method)
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert [(row["method"], row["variant"]) for row in rows[4::2]] == [
        ("fast", "class_balanced"), ("blur", "vanilla"), ("blur", "class_balanced"),
    ]  # fmt: skip
    metrics = json.loads((layout.report / "metrics.json").read_text())
    assert metrics["fast"]["class_balanced"] == 85.0
    assert metrics["fast"]["difference_class_balanced"] == 0.0
    assert metrics["blur"] == {
        "vanilla": 85.0, "class_balanced": 85.0, "difference_class_balanced": 0.0,
    }  # fmt: skip
    text = (layout.report / "report.md").read_text()
    assert "blur" not in text[: text.index("## Arms")]
    assert "| blur | 85.0 ± 63.5 | 0.0 (0.0 to 0.0) | 2 |" in text
    with (layout.report / "curves.csv").open() as file:
        assert {point["variant"] for point in csv.DictReader(file)} == {
            "vanilla", "kdci backbone", "kdci compensated", "class_balanced",
        }  # fmt: skip


@pytest.mark.usefixtures("no_drawing")
def test_without_test_data_the_report_is_about_agreement(params, layout):
    _write_evaluation(layout, params, tested=False)
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert all(row["accuracy"] is None for row in rows)
    metrics = json.loads((layout.report / "metrics.json").read_text())
    assert metrics["fast"]["difference_agreement"] == 1.25
    text = (layout.report / "report.md").read_text()
    assert "No test data" in text
    assert "McNemar" not in text
    assert "| Fast, pool 0 | wrn-16-1 | 0.60 | 1.04 | 90.0 % | - |" in text


@pytest.mark.usefixtures("no_drawing")
def test_figures_of_an_earlier_run_go_and_other_files_stay(params, layout):
    folder = layout.report / "figures"
    folder.mkdir(parents=True)
    (folder / "substitutes-old.png").write_bytes(b"old")
    (layout.report / ".gitignore").write_text("/figures\n")
    report(params, layout)
    assert not (folder / "substitutes-old.png").exists()
    assert (layout.report / ".gitignore").exists()
    assert not list(layout.report.rglob("*.tmp"))


@pytest.mark.usefixtures("no_drawing")
def test_a_report_of_nothing_says_so(params, tmp_path):
    layout = Layout(tmp_path / "empty", "tiny")
    report(params, layout)
    assert json.loads((layout.report / "results.json").read_text()) == []
    assert "0 of the grid's 8 students" in (layout.report / "report.md").read_text()


@pytest.mark.usefixtures("no_drawing")
def test_a_damaged_artifact_leaves_the_last_report_as_it_was(params, layout):
    report(params, layout)
    before = (layout.report / "report.md").read_bytes()
    (layout.pool(TEACHER, "fast", 0) / "images.npy").write_bytes(b"damaged")
    with pytest.raises(IntegrityError):
        report(params, layout)
    assert (layout.report / "report.md").read_bytes() == before


@pytest.mark.usefixtures("no_drawing")
def test_missing_times_are_no_error(params, layout):
    for file in (layout.artifacts / "timings").rglob("*.json"):
        file.write_text("{")
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert [row["seconds"] for row in rows] == [None] * 4


@pytest.mark.usefixtures("no_drawing")
def test_rows_and_curves_have_the_budget_of_the_students_card(params, layout):
    for cell in cells(params.grid):
        if cell.method == "fast" and cell.seed == 1:
            shutil.rmtree(layout.student(cell))
            _write_student(layout, cell, budget=0.5)
    report(params, layout)
    rows = json.loads((layout.report / "results.json").read_text())
    assert [row["budget"] for row in rows] == [1.0, 0.5, 1.0, 0.5], "no budget: an older card"
    metrics = json.loads((layout.report / "metrics.json").read_text())
    assert metrics["fast@1"]["vanilla"] == 90.0
    assert metrics["fast@0.5"]["vanilla"] == 80.0
    with (layout.report / "curves.csv").open() as file:
        budgets = {point["replicate"]: point["budget"] for point in csv.DictReader(file)}
    assert budgets == {"pool0-seed0": "1.0", "pool0-seed1": "0.5"}


@pytest.mark.usefixtures("no_drawing")
def test_one_budget_for_all_is_among_the_metrics(params, layout):
    for cell in cells(params.grid):
        if cell.method == "fast":
            shutil.rmtree(layout.student(cell))
            _write_student(layout, cell, budget=0.5)
    report(params, layout)
    metrics = json.loads((layout.report / "metrics.json").read_text())
    assert metrics["budget"] == 0.5
    assert metrics["fast"]["vanilla"] == 85.0


@pytest.mark.usefixtures("no_drawing")
def test_the_ledger_of_a_published_dataset_is_beside_the_results(params, tmp_path):
    pairs = [{"teacher": "vgg-11", "student": "resnet-18"}]
    grid = Grid(teachers=["vgg-11"], pairs=pairs, methods=["fast"], seeds=[0, 1])
    data = Data(name="cifar10", path="somewhere")
    params = params.model_copy(update={"grid": grid, "data": data})
    layout = Layout(tmp_path, "tiny")
    card = _card(accuracy=92.0)
    with new_artifact(layout.teacher("vgg-11"), kind="teacher", card=card):
        pass
    for cell in cells(grid):
        _write_student(layout, cell)
    _write_evaluation(layout, params, tested=True, dataset="cifar10")
    report(params, layout)
    assert isinstance(json.loads((layout.report / "results.json").read_text()), list)
    lines = json.loads((layout.report / "ledger.json").read_text())
    (line,) = [
        line
        for line in lines
        if line["table"] == 1 and line["variant"] == "vanilla" and line["ours"] is not None
    ]
    assert (line["published"], line["ours"], line["n"]) == (90.53, 85.0, 2)
    assert line["delta"] == pytest.approx(-5.53)
    # 2 s and 3 s for 40 steps, of which an epoch has 10
    assert line["cost"]["seconds_per_epoch"] == pytest.approx(0.625)
    assert line["cost"]["memory_mb"] == 1024.0
    teacher = next(line for line in lines if line["teacher"] == "vgg-11" and not line["method"])
    assert (teacher["published"], teacher["ours"]) == (92.25, 92.0)
    text = (layout.report / "report.md").read_text()
    assert "| vgg-11 to resnet-18 | Fast | vanilla | 90.53 | 85.00 ± 63.53 | 2 | 1 | 40 |" in text


@pytest.mark.usefixtures("no_drawing")
def test_digits_have_an_empty_ledger_and_a_line_of_why(params, layout):
    report(params, layout)
    assert json.loads((layout.report / "ledger.json").read_text()) == []
    text = (layout.report / "report.md").read_text()
    assert "None of the published tables is about digits" in text
