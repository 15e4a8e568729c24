"""What a pair's own values, the budget and the stem come to in the stages themselves."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.graph.build import graph_of
from kdci.graph.node import Parent
from kdci.store.artifacts import open_artifact

WRN = "wrn-10-1"


@pytest.fixture
def with_teacher(fresh, smoke_project):
    """The experiment with its teacher alone, which no value here changes."""
    place = fresh.layout.teacher(WRN)
    shutil.copytree(smoke_project.layout.teacher(WRN), place)
    return fresh


def remade(project, *calls) -> str:
    """Build stages anew and return the content of the last one's result."""
    for call in calls:
        shutil.rmtree(project.artifact(call), ignore_errors=True)
    return project.build(*calls).content(calls[-1])


def test_a_pool_is_made_with_its_teachers_values(with_teacher, call) -> None:
    pool = call("substitute")
    plain = remade(with_teacher, pool)
    with_teacher.edit(methods__fast__by_teacher={WRN: {"num_steps": 3}, "vgg-11": {"num_steps": 7}})
    own = remade(with_teacher, pool)
    with_teacher.edit(methods__fast__by_teacher={}, methods__fast__num_steps=3)
    assert own == remade(with_teacher, pool) != plain


def test_a_student_is_distilled_with_its_own_values(with_teacher, call) -> None:
    with_teacher.build(call("substitute"))
    student = call("vanilla")
    plain = remade(with_teacher, student)
    with_teacher.edit(methods__fast__by_student={WRN: {"temperature": 2.0}})
    own = remade(with_teacher, student)
    with_teacher.edit(methods__fast__by_student={}, methods__fast__temperature=2.0)
    assert own == remade(with_teacher, student) != plain


def test_half_a_budget_is_half_the_calls_and_steps(with_teacher, call) -> None:
    """12 steps in 2 epochs, on a pool of 2 calls of 16 images."""
    with_teacher.edit(budget=0.5).build(call("substitute"), call("vanilla"))
    pool = with_teacher.card(call("substitute"))["facts"]
    assert pool["num_images"] + pool["num_holdout"] == 16
    assert with_teacher.card(call("vanilla"))["facts"]["num_steps"] == 6
    assert with_teacher.card(call("vanilla"))["params"]["budget"] == 0.5


def test_students_are_built_with_the_stem_of_the_params(with_teacher, call) -> None:
    with_teacher.edit(grid__students=["resnet-18"], backbone__stem="imagenet")
    with_teacher.edit(recipes__fast__num_epochs=1, recipes__fast__steps_per_epoch=1)
    with_teacher.build(call("substitute"))
    student = type(call("vanilla"))("distill", f"{WRN}-resnet-18-fast-vanilla-0-0")
    assert with_teacher.build(student).card(student)["facts"]["stem"] == "imagenet"
    tensors = open_artifact(with_teacher.artifact(student), kind="student").tensors(
        "model.safetensors"
    )
    assert tuple(tensors["backbone.conv1.weight"].shape) == (64, 1, 7, 7)


@pytest.mark.parametrize(("student", "other"), [("wrn-10-1", "vgg-11"), ("vgg-11", "wrn-10-1")])
def test_each_pair_has_the_dictionary_of_its_own_lender(fresh, student: str, other: str) -> None:
    tree: dict[str, Any] = read_yaml(fresh.root / "params.yaml")
    pairs = [{"teacher": WRN, "student": "wrn-10-1"}, {"teacher": WRN, "student": "vgg-11"}]
    tree["grid"] |= {
        "students": [],
        "pairs": pairs,
        "others": ["vgg-11", "wrn-10-1"],
        "other_pairs": [{**pairs[0], "other": "vgg-11"}, {**pairs[1], "other": "wrn-10-1"}],
    }
    tree["other"] = {"data": {"name": "digits5", "path": None}}
    tree["compensation"]["fusion"] = "residual"
    graph = graph_of(Params.model_validate(tree), fresh.root)
    node = graph.node("distill", f"{WRN}-{student}-fast-kdci_other-0-0")
    place = fresh.root / f"artifacts/digits-smoke/other/dictionaries/{other}/fast/pool0"
    assert node.parents["dictionary"] == Parent(place, "dictionary")
