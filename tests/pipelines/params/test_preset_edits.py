"""Values that `kdci preset` puts into a preset: a teacher's facts, a student, a budget."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kdci.config.params_file import load_params
from kdci.errors import IntegrityError, UserError
from kdci.store.artifacts import CARD, new_artifact, read_card
from pipelines.params.edit import checked, write_preset
from pipelines.params.presets import is_ours, preset_text

FACTS: dict[str, Any] = {
    "backbone": "resnet-18",
    "stem": "imagenet",
    "dataset": "custom",
    "num_classes": 3,
    "channels": 3,
    "image_size": 48,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.1],
    "class_names": ["a", "b", "c"],
    "accuracy": None,
}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    folder = tmp_path / "teachers" / "mine"
    with new_artifact(folder, kind="teacher", card={"facts": FACTS}) as draft:
        draft.save_json("x.json", 1)
    return folder


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project" / "params.yaml"


def test_a_teacher_brings_its_backbone_dataset_and_classes(file: Path, teacher: Path) -> None:
    write_preset("own-teacher", file, teacher="teachers/mine", student="mobilenetv2", budget=0.01)
    params = load_params(file)
    assert params.grid.all_pairs == (("resnet-18", "mobilenetv2"),)
    assert params.budget == 0.01
    assert params.teacher.content == read_card(teacher, kind="teacher")["content"]
    assert params.teacher.artifact == os.path.join("..", "teachers", "mine")
    assert (params.data.path, params.data.test) == (None, None)
    spec = params.data.spec
    assert (spec.num_classes, spec.image_size, spec.channels) == (3, 48, 3)
    assert (spec.mean, spec.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert spec.class_names == ("a", "b", "c")
    assert params.dictionary.num_prototypes == 3
    assert file.read_text().count("#") == preset_text("own-teacher").count("#")


def test_what_was_put_in_is_no_edit_of_a_human(file: Path, teacher: Path) -> None:
    write_preset("own-teacher", file, teacher=str(teacher))
    assert is_ours(file)
    write_preset("digits", file)
    file.write_text(file.read_text().replace("seeds: [0, 1, 2]", "seeds: [5]"))
    with pytest.raises(UserError, match="has edits"):
        write_preset("own-teacher", file, teacher=str(teacher))
    write_preset("own-teacher", file, teacher=str(teacher), force=True)
    assert load_params(file).preset == "own-teacher"


def test_data_stays_where_it_is_given(file: Path, teacher: Path, tmp_path: Path) -> None:
    card = {"facts": {**FACTS, "backbone": "wrn-16-2", "dataset": "cifar10", "num_classes": 10}}
    with new_artifact(teacher, kind="teacher", card=card):
        pass
    write_preset("cifar10-cpu", file, data=str(tmp_path / "d"), teacher=str(teacher))
    params = load_params(file)
    assert (params.data.name, params.data.path) == ("cifar10", str(tmp_path / "d"))
    assert params.data.facts is None and params.data.test == "test"


@pytest.mark.parametrize("option", ["student", "teacher"])
def test_a_table_keeps_its_pairs(file: Path, teacher: Path, option: str) -> None:
    given: dict[str, Any] = {option: "wrn-16-1" if option == "student" else str(teacher)}
    with pytest.raises(UserError, match=f"--{option}: .* of its own"):
        write_preset("table1-cifar10", file, **given)
    assert not file.exists()


def test_a_budget_scales_a_table(file: Path) -> None:
    write_preset("table1-cifar10", file, budget=0.1)
    assert load_params(file).recipe("fast").num_steps == 8000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"budget": 0.0}, "budget"),
        ({"student": "resnet-19"}, "unknown backbone"),
        ({"teacher": "nowhere"}, "there is no teacher here"),
    ],
)
def test_values_that_do_not_fit_leave_no_file(
    file: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        write_preset("own-teacher", file, **given)
    assert not file.exists()


def test_a_tampered_card_is_refused(file: Path, teacher: Path) -> None:
    card = json.loads((teacher / CARD).read_text())
    card["facts"]["num_classes"] = 4
    (teacher / CARD).write_text(json.dumps(card))
    with pytest.raises(IntegrityError):
        write_preset("own-teacher", file, teacher=str(teacher))
    assert not file.exists()


def rewrite(teacher: Path, **facts: Any) -> None:
    with new_artifact(teacher, kind="teacher", card={"facts": {**FACTS, **facts}}):
        pass


DIGITS = {"backbone": "wrn-16-1", "dataset": "digits", "num_classes": 10, "channels": 1}
CIFAR100 = {"backbone": "wrn-16-2", "dataset": "cifar100", "num_classes": 100}


def test_bundled_data_is_there_without_a_folder(file: Path, teacher: Path) -> None:
    rewrite(teacher, **DIGITS)
    write_preset("digits", file, teacher=str(teacher))
    data = load_params(file).data
    assert (data.name, data.path, data.test) == ("digits", None, "test")
    write_preset("cifar10-cpu", file, teacher=str(teacher))
    data = load_params(file).data
    assert (data.name, data.path, data.test) == ("digits", None, "test")


@pytest.mark.parametrize("preset", ["cifar10-cpu", "digits"])
def test_a_teacher_of_other_data_leaves_the_presets_folder(
    file: Path, teacher: Path, preset: str
) -> None:
    rewrite(teacher, **CIFAR100)
    write_preset(preset, file, teacher=str(teacher))
    data = load_params(file).data
    assert (data.name, data.path, data.test) == ("cifar100", None, None)


def test_a_teacher_of_the_same_data_keeps_the_presets_folder(file: Path, teacher: Path) -> None:
    rewrite(teacher, **{**CIFAR100, "dataset": "cifar10", "num_classes": 10})
    write_preset("cifar10-cpu", file, teacher=str(teacher))
    data = load_params(file).data
    assert data.path == checked(preset_text("cifar10-cpu")).data.path is not None
    assert data.test == "test"


@pytest.mark.parametrize("preset", ["table5-digits", "table1-cifar10"])
def test_several_teachers_are_named_in_the_params(file: Path, teacher: Path, preset: str) -> None:
    rewrite(teacher, **DIGITS)
    with pytest.raises(UserError, match="--teacher") as caught:
        write_preset(preset, file, teacher=str(teacher))
    assert caught.value.subject == "--teacher"
    assert "teacher.artifact" in caught.value.fix
    assert not file.exists()
