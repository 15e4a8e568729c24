from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from kdci.data.datasets.loading import load_split
from kdci.models.students import load_student
from kdci.store.hashing import hash_json

_OPENED: list[str] | None = None


def _watch(event, arguments):
    if event == "open" and _OPENED is not None:
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_watch)  # can not be removed; does nothing while _OPENED is None


@pytest.fixture
def rows(smoke_project, call):
    folder = smoke_project.artifact(call("evaluate"))
    return json.loads((folder / "cells.json").read_text())


def test_accuracies_are_those_of_the_deployed_students(smoke_project, rows):
    test = load_split(smoke_project.params.data.spec, path=None, split="test")
    images = test.images.float() / 255
    assert [row["variant"] for row in rows] == ["vanilla", "kdci"]
    for row in rows:
        path = smoke_project.layout.student(smoke_project.cell(row["variant"]))
        for deploy in ("backbone", "compensated"):
            stated = row[f"accuracy_{deploy}"]
            if row["variant"] == "vanilla" and deploy == "compensated":
                assert stated is None
                continue
            student = load_student(path, deploy=deploy)
            with torch.no_grad():
                right = student(images).argmax(dim=1) == test.labels
            assert stated == pytest.approx(100 * float(right.double().mean()), abs=0.2)
        assert row["accuracy"] == row["accuracy_backbone"]
        assert row["num_steps"] == 12
        assert row["budget"] == 1.0


def test_a_row_has_the_budget_of_the_student_that_was_scored(built, call):
    """Not that of the params, which may have changed since."""
    folder = built.artifact(call("evaluate"))
    shutil.rmtree(folder)
    card = built.layout.student(built.cell("kdci")) / "card.json"
    text = json.loads(card.read_text())
    text.pop("card_sha256")
    text["params"]["budget"] = 0.5
    card.write_text(json.dumps({**text, "card_sha256": hash_json(text)}))
    assert built.run(call("evaluate")) == 0
    rows = json.loads((folder / "cells.json").read_text())
    assert {row["variant"]: row["budget"] for row in rows} == {"vanilla": 1.0, "kdci": 0.5}


def test_curves_end_where_the_rows_are(smoke_project, call, rows):
    curves = json.loads((smoke_project.artifact(call("evaluate")) / "curves.json").read_text())
    for row, curve in zip(rows, curves, strict=True):
        assert [point["step"] for point in curve["points"]] == [6, 12]
        last = curve["points"][-1]
        for name in ("accuracy_backbone", "accuracy_compensated", "agreement_backbone"):
            assert last[name] == row[name]


def test_examples_show_the_students_predictions(smoke_project, call):
    folder = smoke_project.artifact(call("evaluate"))
    images = torch.from_numpy(np.load(folder / "examples.npy")).float() / 255
    examples = json.loads((folder / "examples.json").read_text())
    assert len(images) == len(examples) == 24
    for variant in ("vanilla", "kdci"):
        student = load_student(smoke_project.layout.student(smoke_project.cell(variant)))
        with torch.no_grad():
            classes = student(images).argmax(dim=1).tolist()
        shown = [example[variant] for example in examples]
        assert sum(a != b for a, b in zip(classes, shown, strict=True)) <= 1


def test_same_bytes_twice(built, call):
    expected = built.content(call("evaluate"))
    built.build(call("evaluate"))
    assert built.content(call("evaluate")) == expected


# -- data-free ---------------------------------------------------------------------------------


class OriginalDataError(Exception):
    pass


@pytest.fixture
def guarded(monkeypatch):
    """Have every door to the original data raise, and watch the file itself."""

    def refuse(*args, **kwargs):
        raise OriginalDataError

    monkeypatch.setattr("kdci.data.datasets.loading.load_split", refuse)
    monkeypatch.setattr("kdci.data.datasets.digits.bundled_file", refuse)
    monkeypatch.setattr("sklearn.datasets.load_digits", refuse)
    opened = []
    monkeypatch.setattr(sys.modules[__name__], "_OPENED", opened)
    return opened


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fast", "dfnd"])
@pytest.mark.parametrize("stage", ["substitute", "dictionary", "vanilla", "kdci"])
def test_stage_never_opens_original_data(built, call, guarded, stage, method):
    assert built.run(call(stage, method)) == 0
    assert guarded  # the hook sees the files of this stage
    assert not [name for name in guarded if "digits.csv" in name]


def test_report_never_opens_original_data(built, call, guarded, monkeypatch):
    monkeypatch.setattr("kdci.reporting.figures.drawing.draw_figures", lambda evidence: [])
    assert built.run(call("report")) == 0
    assert not [name for name in guarded if "digits.csv" in name]


@pytest.mark.parametrize("stage", ["teacher", "evaluate"])
def test_teacher_and_evaluate_are_the_stages_that_do(built, call, guarded, stage):
    """Guards the tests above: the doors that they shut are the ones in use."""
    with pytest.raises(OriginalDataError):
        built.run(call(stage))


@pytest.mark.slow
def test_whole_pipeline_without_test_data(fresh, call, monkeypatch):
    import kdci.data.datasets.loading as door

    load, splits = door.load_split, set()
    monkeypatch.setattr(
        door,
        "load_split",
        lambda name, *, path, split: (splits.add(split), load(name, path=path, split=split))[1],
    )
    fresh.edit(data__test=None, grid__methods=["fast"]).build()
    assert splits == {"train"}
    assert fresh.card(call("teacher"))["facts"]["accuracy"] is None
    rows = json.loads((fresh.layout.report / "results.json").read_text())
    assert [row["variant"] for row in rows] == ["vanilla", "kdci"]
    for row in rows:
        assert row["accuracy"] is row["accuracy_backbone"] is row["teacher_accuracy"] is None
        assert 0 <= row["agreement_backbone"] <= 100
    assert fresh.card(call("evaluate"))["facts"]["evaluated_on"] == "holdout"
