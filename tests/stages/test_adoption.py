"""A finished teacher, `teacher.artifact`, in the place of a trained one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kdci.store.artifacts import new_artifact, open_artifact

WRN = "wrn-10-1"


@pytest.fixture
def finished(smoke_project, fresh) -> Path:
    """A teacher that lies in the project and is no output of its pipeline."""
    folder = fresh.root / "teachers" / f"mine-{WRN}"
    shutil.copytree(smoke_project.layout.teacher(WRN), folder)
    return folder


@pytest.fixture
def adopting(fresh, finished):
    return fresh.edit(teacher__artifact="teachers/mine-{teacher}")


def rewritten(folder: Path, **facts: Any) -> None:
    """Write a teacher's artifact anew with other facts on its card."""
    artifact = open_artifact(folder, kind="teacher")
    tensors, card = artifact.tensors("model.safetensors"), dict(artifact.card)
    for key in ("kind", "format", "files", "content", "card_sha256"):
        del card[key]
    with new_artifact(folder, kind="teacher", card=card) as draft:
        draft.save_tensors("model.safetensors", tensors)
        draft.card["facts"] = {**artifact.facts, **facts}


def test_the_same_bits_and_where_they_came_from(adopting, finished, smoke_project, call) -> None:
    theirs = open_artifact(finished, kind="teacher")
    card = adopting.build(call("teacher")).card(call("teacher"))
    assert card["files"]["model.safetensors"] == theirs.card["files"]["model.safetensors"]
    assert card["facts"]["adopted"] == {"content": theirs.content, "path": f"teachers/mine-{WRN}"}
    assert {k: v for k, v in card["facts"].items() if k != "adopted"} == theirs.facts
    assert card["parents"] == {"adopted": theirs.content}
    assert card["stage"] == f"teacher@{WRN}"
    assert adopting.leftovers() == []


def test_accuracy_is_measured_where_there_is_a_test_split(adopting, finished, call) -> None:
    measured = open_artifact(finished, kind="teacher").facts["accuracy"]
    rewritten(finished, accuracy=12.5, train_accuracy=None)
    stated = adopting.build(call("teacher")).card(call("teacher"))["facts"]["accuracy"]
    assert stated == measured != 12.5


def test_without_test_split_no_data_is_opened(
    adopting, finished, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kdci.data.datasets.loading

    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("original data was opened")

    rewritten(finished, accuracy=12.5)
    monkeypatch.setattr(kdci.data.datasets.loading, "load_split", forbidden)
    adopting.edit(data__test=None).build(call("teacher"))
    assert adopting.card(call("teacher"))["facts"]["accuracy"] == 12.5


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"backbone": "wrn-16-1"}, "teacher.artifact: teachers/mine-wrn-10-1 is a wrn-16-1"),
        ({"num_classes": 7}, "has num_classes 7, digits has 10"),
        ({"dataset": "cifar10"}, "is a teacher of cifar10, data.name is digits"),
        ({"image_size": 32}, "has image_size 32, digits has 16"),
    ],
)
def test_another_teacher_than_asked_for(adopting, finished, call, capsys, facts, told) -> None:
    rewritten(finished, **facts)
    assert adopting.run(call("teacher")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not adopting.artifact(call("teacher")).exists()


def test_no_teacher_there(fresh, call, capsys) -> None:
    fresh.edit(teacher__artifact="teachers/none")
    assert fresh.run(call("teacher")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdci: error: teacher.artifact: teachers/none: there is no teacher here")
    assert "kdci import-teacher" in line


@pytest.mark.parametrize(("name", "code"), [("model.safetensors", 3), ("card.json", 3)])
def test_a_damaged_teacher(adopting, finished, call, capsys, name, code) -> None:
    data = bytearray((finished / name).read_bytes())
    data[len(data) // 2] ^= 1
    (finished / name).write_bytes(data)
    assert adopting.run(call("teacher")) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and "import the teacher again" in line
    assert not adopting.artifact(call("teacher")).exists()


def test_normalisation_is_the_teachers_own(adopting, finished, call) -> None:
    rewritten(finished, mean=[0.5], std=[0.5])
    adopting.build(call("teacher"))
    from kdci.models.pretrained import load_teacher

    path = adopting.artifact(call("teacher"))
    teacher = load_teacher(open_artifact(path, kind="teacher"), adopting.params.data.spec)
    assert float(teacher.mean) == 0.5
    assert adopting.card(call("teacher"))["facts"]["mean"] == [0.5]


class TestWithoutAnyAccuracy:
    """An imported teacher whose accuracy nobody measured."""

    @pytest.fixture
    def unmeasured(self, adopting, finished, call):
        rewritten(finished, accuracy=None, train_accuracy=None)
        return adopting.edit(data__test=None).build(call("teacher"))

    def test_methods_go_on(self, unmeasured, call) -> None:
        assert unmeasured.card(call("teacher"))["facts"]["accuracy"] is None
        unmeasured.build(call("substitute"))

    def test_dfnd_has_to_be_told(self, unmeasured, call, capsys) -> None:
        unmeasured.edit(grid__methods=["dfnd"], grid__shifts=[], grid__controls=[])
        assert unmeasured.run(call("substitute", "dfnd")) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("kdci: error: methods.dfnd.teacher_accuracy: ")
        unmeasured.edit(methods__dfnd__teacher_accuracy=0.8)
        assert unmeasured.run(call("substitute", "dfnd")) == 0


def test_students_are_those_of_the_same_teacher_trained(adopting, smoke_project, call) -> None:
    """What follows depends on the tensors and facts alone, which are the same."""
    pool = call("substitute")
    adopting.build(call("teacher"), pool)
    assert adopting.content(pool) == smoke_project.content(pool)
    state = json.loads((adopting.artifact(pool) / "card.json").read_text())
    assert state["parents"]["teacher"] == adopting.content(call("teacher"))


def test_another_teacher_in_the_folder_is_not_taken_for_the_one_named(
    adopting, finished, call, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = open_artifact(finished, kind="teacher")
    adopting.edit(teacher__content=theirs.content).build(call("teacher"))
    shutil.rmtree(adopting.layout.teacher(WRN))
    tensors = theirs.tensors("model.safetensors")
    name = next(iter(tensors))
    with new_artifact(finished, kind="teacher", card={"facts": theirs.facts}) as draft:
        draft.save_tensors("model.safetensors", {**tensors, name: tensors[name] + 1})
    assert adopting.run(call("teacher")) == 3
    assert f"teacher.content names {theirs.content[:12]}" in capsys.readouterr().err
    assert not adopting.layout.teacher(WRN).exists()


def test_check_tells_of_a_teacher_that_was_adopted_from_another(
    adopting, finished, call, smoke_project
) -> None:
    from pipelines.importing.check import check_teacher_artifact

    def told() -> list[str]:
        found = check_teacher_artifact(adopting.params, adopting.layout)
        return [line for problem in found for line in problem.lines()]

    assert told() == []
    adopting.build(call("teacher"))
    assert told() == []
    theirs = open_artifact(finished, kind="teacher")
    tensors = theirs.tensors("model.safetensors")
    name = next(iter(tensors))
    with new_artifact(finished, kind="teacher", card={"facts": theirs.facts}) as draft:
        draft.save_tensors("model.safetensors", {**tensors, name: tensors[name] + 1})
    (line,) = told()
    assert "when another teacher lay there" in line and f"teacher@{WRN}" in line
