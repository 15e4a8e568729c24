"""What a search maximises is what evaluate measures, and never on the test split."""

from __future__ import annotations

import json

import pytest

from kdci.errors import UserError
from kdci.store.layout import Layout
from pipelines.searching.criteria import Scorer, load_snapshot, require_criterion
from pipelines.searching.options import SearchOptions
from pipelines.searching.plan import begin_search


@pytest.fixture
def params(fresh):
    return fresh.params


def test_what_can_be_asked_for(params):
    for criterion in ("agreement", "accuracy:train"):
        require_criterion(criterion, params)
    compensated = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"deploy": "compensated"})}
    )
    assert metric(params, "agreement", "kdci") == "agreement_backbone"
    assert metric(compensated, "agreement", "kdci") == "agreement_compensated"
    assert metric(compensated, "agreement", "vanilla") == "agreement_backbone"
    assert metric(params, "accuracy:train", "kdci") == "accuracy_train_backbone"


def metric(params, criterion, variant):
    options = SearchOptions(criterion=criterion, variant=variant)
    return begin_search(params, options, {}).metric


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accuracy:test", "sees the test split"),
        ("accuracy:validation", "no split 'validation'"),
        ("accuracy", "unknown criterion"),
        ("loss", "unknown criterion"),
    ],
)
def test_what_is_refused(params, text, said):
    with pytest.raises(UserError, match=said) as caught:
        require_criterion(text, params)
    assert caught.value.subject == "--criterion"


def test_the_test_split_stays_refused_where_there_is_no_test_data(fresh):
    params = fresh.edit(data__test=None).params
    with pytest.raises(UserError, match="sees the test split"):
        require_criterion("accuracy:test", params)


@pytest.mark.parametrize("variant", ["vanilla", "kdci"])
def test_agreement_is_that_of_the_evaluation_and_opens_no_data(built, call, variant, monkeypatch):
    from kdci.models.students import snapshot_of, student_of

    def refuse(*args, **kwargs):
        raise AssertionError("original data was opened")

    monkeypatch.setattr("kdci.data.datasets.loading.load_split", refuse)
    cell = built.cell(variant)
    artifact = open_student(built, cell)
    scorer = Scorer(built.graph, built.root, "agreement", cell)
    folder = built.artifact(call("evaluate"))
    row = next(
        row for row in json.loads((folder / "cells.json").read_text()) if row["variant"] == variant
    )
    assert scorer.score(student_of(artifact), cell) == row["agreement_backbone"]
    curve = next(
        curve
        for curve in json.loads((folder / "curves.json").read_text())
        if curve["variant"] == variant
    )
    for (_, name), point in zip(artifact.facts["snapshots"], curve["points"], strict=True):
        assert scorer.score(snapshot_of(artifact, name), cell) == point["agreement_backbone"]
        # As it lies in the work folder while the student is being distilled: without a card.
        loose = load_snapshot(artifact.path / name, built.params, cell)
        assert loose is not None and (loose.compensation is not None) == (variant == "kdci")
        assert scorer.score(loose, cell) == point["agreement_backbone"]


def test_accuracy_is_that_of_the_named_split(built):
    from kdci.data.datasets.loading import load_split
    from kdci.models.students import student_of
    from kdci.training.evaluation import match_percentage, predict_classes

    cell = built.cell("kdci")
    student = student_of(open_student(built, cell))
    scorer = Scorer(built.graph, built.root, "accuracy:train", cell)
    train = load_split(built.params.data.spec, path=None, split="train")
    classes = predict_classes(student, train.images, batch_size=512)
    assert scorer.score(student, cell) == match_percentage(classes, train.labels)


def test_a_snapshot_that_is_not_whole_is_none_yet(built, tmp_path):
    cell = built.cell("kdci")
    artifact = open_student(built, cell)
    _, name = artifact.facts["snapshots"][0]
    data = (artifact.path / name).read_bytes()
    half = tmp_path / name
    assert load_snapshot(half, built.params, cell) is None
    for size in (0, 7, len(data) // 2, len(data) - 1):
        half.write_bytes(data[:size])
        assert load_snapshot(half, built.params, cell) is None
    half.write_bytes(data)
    assert load_snapshot(half, built.params, cell) is not None


def open_student(project, cell):
    from kdci.store.artifacts import open_artifact

    return open_artifact(Layout(project.root, project.params.preset).student(cell), kind="student")
