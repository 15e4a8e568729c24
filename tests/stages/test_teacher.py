from __future__ import annotations

import json

import pytest


@pytest.fixture
def card(smoke_project, call):
    return smoke_project.card(call("teacher"))


def test_facts_are_those_of_the_saved_model(smoke_project, card):
    from kdci.artifacts import open_artifact
    from kdci.data.datasets import load_split
    from kdci.pretrained import load_teacher

    artifact = open_artifact(smoke_project.layout.teacher("wrn-10-1"), kind="teacher")
    teacher = load_teacher(artifact, smoke_project.params.data.spec)
    for split, fact in (("test", "accuracy"), ("train", "train_accuracy")):
        data = load_split("digits", path=None, split=split)
        predicted = teacher(data.images.float() / 255).logits.argmax(dim=1)
        right = int((predicted == data.labels).sum())
        assert card["facts"][fact] == pytest.approx(100 * right / len(data.labels), abs=0.2)
    assert card["facts"]["accuracy"] > 20  # of ten classes


def test_one_metrics_line_an_epoch(smoke_project):
    file = smoke_project.layout.teacher("wrn-10-1") / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["loss"] < rows[0]["loss"]


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
    student = smoke_project.card(call("distill_kdci"))
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
