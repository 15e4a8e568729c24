from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def card(smoke_project, call):
    return smoke_project.card(call("teacher"))


def test_facts_are_those_of_the_saved_model(smoke_project, card):
    from kdci.data.datasets.loading import load_split
    from kdci.models.pretrained import load_teacher
    from kdci.store.artifacts import open_artifact

    artifact = open_artifact(smoke_project.layout.teacher("wrn-10-1"), kind="teacher")
    teacher = load_teacher(artifact, smoke_project.params.data.spec)
    test = load_split(smoke_project.params.data.spec, path=None, split="test")
    with torch.no_grad():
        right = teacher(test.images.float() / 255).logits.argmax(dim=1) == test.labels
    accuracy = 100 * float(right.double().mean())
    assert card["facts"]["accuracy"] == pytest.approx(accuracy, abs=0.2)
    rows = (artifact.path / "metrics.jsonl").read_text().splitlines()
    assert card["facts"]["train_accuracy"] == json.loads(rows[-1])["train_accuracy"]
    assert accuracy > 20  # of ten classes
    assert card["facts"]["stem"] == "cifar"  # `auto` for 16 px


def test_scoring_leaves_the_teacher_as_it_was_trained(built, call):
    """Else BatchNorm's running statistics would learn from test images."""
    scored = built.card(call("teacher"))["files"]["model.safetensors"]
    built.edit(data__test=None).build(call("teacher"))
    assert built.card(call("teacher"))["files"]["model.safetensors"] == scored


def test_one_metrics_line_an_epoch(smoke_project):
    file = smoke_project.layout.teacher("wrn-10-1") / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_same_seed_same_bytes_another_seed_other_bytes(smoke_project, fresh, call):
    this = call("teacher")
    fresh.build(this)
    assert fresh.content(this) == smoke_project.content(this)
    fresh.edit(teacher__seed=1).build(this)
    assert fresh.content(this) != smoke_project.content(this)


def test_card_says_where_the_result_came_from(smoke_project, call):
    for this in smoke_project.calls()[:-1]:
        card = smoke_project.card(this)
        assert card["stage"] == this.name
        assert card["runtime"]["threads"] == 1
        assert card["reproducible"] is True
        assert {"revision", "hash"} == set(card["code"])
        assert card["versions"]["torch"]
    student = smoke_project.card(call("kdci"))
    assert student["parents"] == {
        "teacher": smoke_project.content(call("teacher")),
        "pool": smoke_project.content(call("substitute")),
        "dictionary": smoke_project.content(call("dictionary")),
    }
    assert student["seeds"] == {"seed": 0, "pool_seed": 0}


def test_timing_lies_beside_the_artifacts(smoke_project):
    for this in smoke_project.calls()[:-1]:
        file = smoke_project.layout.timing(smoke_project.artifact(this))
        timing = json.loads(file.read_text())
        assert 0 <= timing["loop_seconds"] <= timing["seconds"]
        assert timing["seconds"] <= timing["finished"] - timing["started"] + 0.1


def test_stem_is_that_of_the_params(fresh, call):
    """A backbone without a choice has the same weights, whatever is asked for."""
    fresh.edit(backbone={"stem": "imagenet"}).build(call("teacher"))
    assert fresh.card(call("teacher"))["facts"]["stem"] == "imagenet"
