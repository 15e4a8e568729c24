"""The graph of an experiment: its nodes by hand, named by what they are."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.errors import UserError
from kdci.graph.build import Graph, graph_of
from kdci.graph.node import KINDS, Parent, require_cell_name
from tests.project_code import ROOT

PROJECT = Path("/project")
A = PROJECT / "artifacts/digits-smoke"


def graph(**grid: Any) -> Graph:
    """Return the graph of digits-smoke with other axes; ``blocks`` go to the tree beside them."""
    tree = read_yaml(ROOT / "pipelines/presets/digits-smoke.yaml")
    for key, block in grid.pop("blocks", {}).items():
        tree[key] = {**(tree.get(key) or {}), **block}
    tree["grid"] |= grid
    return graph_of(Params.model_validate(tree), PROJECT)


EVERYTHING: dict[str, Any] = {
    "methods": ["fast"],
    "controls": ["noise"],
    "arms": ["stratified", "logit_adjusted"],
    "others": ["wrn-16-1"],
    "shifts": ["tail"],
    "shift_arms": ["vanilla", "kdci_stratified"],
    "pool_seeds": [0, 3],
    "blocks": {
        "other": {"data": {"name": "digits5", "path": None, "test": "test", "facts": None}},
        "shift": {"base": "fast", "num_images": 40},
        "shifts": {"tail": {"imbalance": 4.0}},
        "compensation": {"fusion": "residual"},
    },
}


def test_nodes_are_the_cells_each_once_parents_first() -> None:
    found = graph(**EVERYTHING)
    counts = {stage: len(found.of_stage(stage)) for stage in KINDS}
    assert counts == {
        "teacher": 2,
        "substitute": 2 + 1 + 2,  # of the method, the control, the other model
        "shift": 2,
        "dictionary": 2 + 2 + 2,
        "distill": 2 * 5 + 1 + 2 * 2,
        "evaluate": 3,
        "report": 1,
    }
    assert len(found.by_artifact) == len(found.nodes)
    seen: set[Path] = set()
    for name, node in found.nodes.items():
        assert name == node.name
        assert all(parent.path in seen for parent in node.parents.values())
        assert all(
            found.by_artifact[parent.path].kind == parent.kind for parent in node.parents.values()
        )
        seen.add(node.artifact)


def test_a_student_depends_on_what_its_arm_needs_and_no_more() -> None:
    found = graph(**EVERYTHING)
    plain = {"runtime", "budget", "backbone", "data.name", "data.facts", "distill"}
    fast = plain | {"methods.fast", "recipes.fast"}
    tail = plain | {"shift", "shifts.tail", "recipes.fast"}
    drawn = {"intervention.strata", "intervention.max_repeats"}
    expected = {
        "fast-vanilla-0-0": (fast, None),
        "fast-kdci-0-0": (fast | {"compensation"}, A / "dictionaries/wrn-10-1/fast/pool0"),
        "fast-stratified-0-0": (fast | drawn, A / "dictionaries/wrn-10-1/fast/pool0"),
        "fast-logit_adjusted-3-0": (fast | {"intervention.tau"}, None),
        "fast-kdci_other-3-0": (
            fast | {"compensation"},
            A / "other/dictionaries/wrn-16-1/fast/pool3",
        ),
        "tail-vanilla-0-0": (tail, None),
        "tail-kdci_stratified-0-0": (
            tail | {"compensation"} | drawn,
            A / "dictionaries/wrn-10-1/tail/pool0",
        ),
    }
    for cell, (blocks, dictionary) in expected.items():
        node = found.node("distill", f"wrn-10-1-wrn-10-1-{cell}")
        assert set(node.blocks.values()) == blocks
        parent = node.parents.get("dictionary")
        assert parent == (None if dictionary is None else Parent(dictionary, "dictionary"))
        assert node.parents["teacher"].path == A / "teachers/wrn-10-1"


def test_the_other_model_has_its_own_data_under_the_keys_that_cards_have() -> None:
    found = graph(**EVERYTHING)
    node = found.node("substitute", "other-wrn-16-1-fast-0")
    assert node.blocks["data.name"] == "other.data.name"
    assert found.values(node)["data.name"] == "digits5"
    assert found.values(found.node("substitute", "wrn-10-1-fast-0"))["data.name"] == "digits"
    assert node.fields == {"other": "wrn-16-1", "method": "fast", "pool_seed": "0"}
    assert found.node("teacher", "other-wrn-16-1").artifact == A / "other/teachers/wrn-16-1"


def test_an_evaluation_is_made_from_all_of_its_students_and_their_pools() -> None:
    node = graph(**EVERYTHING).node("evaluate", "wrn-10-1-wrn-10-1-tail")
    kinds = sorted(parent.kind for parent in node.parents.values())
    assert kinds == ["pool", "pool", "student", "student", "student", "student", "teacher"]


def test_what_is_adopted_is_a_parent() -> None:
    adopted = {
        "teacher": {"artifact": "teachers/{teacher}-{dataset}"},
        "dictionary": {"artifact": "elsewhere/z"},
    }
    found = graph(blocks=adopted)
    (teacher,) = found.of_stage("teacher")
    place = PROJECT / "teachers/wrn-10-1-digits"
    assert teacher.parents == {"adopted": Parent(place, "teacher")}
    node = found.node("dictionary", "wrn-10-1-fast-0")
    assert node.parents["dictionary"].path == PROJECT / "elsewhere/z"


def test_names_do_not_depend_on_the_order_of_pairs() -> None:
    pairs = [
        {"teacher": "wrn-16-1", "student": "wrn-10-1"},
        {"teacher": "vgg-11", "student": "wrn-10-1"},
        {"teacher": "vgg-11", "student": "wrn-16-1"},
    ]
    names = {
        frozenset(graph(teachers=["wrn-16-1", "vgg-11"], students=[], pairs=list(order)).nodes)
        for order in permutations(pairs)
    }
    assert len(names) == 1
    (only,) = names
    assert "distill@vgg-11-wrn-16-1-fast-kdci-0-0" in only


def test_names_that_run_together_are_refused() -> None:
    """No two backbones of ours do; those of a package might."""
    params = graph().params
    twice = params.grid.model_copy(update={"teachers": ("wrn-10-1", "wrn-10-1")})
    with pytest.raises(UserError, match="stands for two cells"):
        graph_of(params.model_copy(update={"grid": twice}), PROJECT)


def test_a_cell_that_is_not_there_is_told_with_some_that_are() -> None:
    with pytest.raises(UserError, match="is no cell of `distill`.*wrn-10-1-wrn-10-1-fast-vanilla"):
        graph().node("distill", "wrn-10-1-wrn-10-1-fast-vanilla-0-9")


@pytest.mark.parametrize("name", ["a", "wrn-16-1", "timm-resnet18.a1_in1k", "A_b.c-0"])
def test_names_of_cells(name: str) -> None:
    assert require_cell_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a;b", "$a", "a/b", "a\n", "ä", "'a'"])
def test_what_a_shell_would_read_is_no_name(name: str) -> None:
    with pytest.raises(UserError, match="is no cell's name"):
        require_cell_name(name)
