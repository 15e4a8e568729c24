"""Which nodes the params ask for, under which names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.graph.build import Graph, graph_of
from kdci.store.layout import cells
from tests.project_code import ROOT

STUDENT = "wrn-10-1-wrn-10-1"


@pytest.fixture
def tree() -> dict[str, Any]:
    return copy.deepcopy(read_yaml(ROOT / "pipelines/presets/digits-smoke.yaml"))


def graph(tree: dict[str, Any]) -> Graph:
    return graph_of(Params.model_validate(tree), ROOT)


def test_every_stage_at_every_point_of_the_grid(tree: dict[str, Any]) -> None:
    tree["grid"].update(seeds=[0, 1], pool_seeds=[3], students=["wrn-10-1", "wrn-16-1"])
    found = graph(tree)
    assert len(found.makers) == 1 + 2 + 2 + 2 * 2 * 2 * 2 + 2 * 2
    assert [*found.nodes][-1] == "report"
    students = found.of_stage("distill")
    assert {node.student for node in students} == {*cells(found.params.grid)}
    one = found.nodes["distill@wrn-10-1-wrn-16-1-dfnd-kdci-3-1"]
    folder = found.layout.students("wrn-10-1", "wrn-16-1", "dfnd")
    assert one.artifact == folder / "kdci/pool3-seed1"
    assert found.values(one)["recipes.dfnd"]["batch_size"] == 8
    assert "recipes.fast" not in one.blocks
    assert one.student is not None
    assert one.artifact in {p.path for p in found.evaluation_of(one.student).parents.values()}


def test_arms_shifts_and_the_other_model(tree: dict[str, Any]) -> None:
    tree["grid"].update(methods=["fast"], arms=["stratified"], others=["wrn-16-1"])
    tree["grid"].update(shifts=["tail"], shift_arms=["vanilla", "kdci"])
    tree["compensation"]["fusion"] = "residual"
    tree["other"] = {"data": {"name": "digits5", "path": None}}
    tree["shift"], tree["shifts"] = {"base": "fast", "num_images": 40}, {"tail": {}}
    assert [node.name for node in graph(tree).makers] == [
        "teacher@other-wrn-16-1",
        "substitute@other-wrn-16-1-fast-0",
        "dictionary@other-wrn-16-1-fast-0",
        "teacher@wrn-10-1",
        "substitute@wrn-10-1-fast-0",
        "shift@wrn-10-1-tail-0",
        "dictionary@wrn-10-1-fast-0",
        "dictionary@wrn-10-1-tail-0",
        f"distill@{STUDENT}-fast-vanilla-0-0",
        f"distill@{STUDENT}-fast-kdci-0-0",
        f"distill@{STUDENT}-fast-stratified-0-0",
        f"distill@{STUDENT}-fast-kdci_other-0-0",
        f"distill@{STUDENT}-tail-vanilla-0-0",
        f"distill@{STUDENT}-tail-kdci-0-0",
        f"evaluate@{STUDENT}-fast",
        f"evaluate@{STUDENT}-tail",
    ]


def test_a_control_is_asked_for_once_a_pair_on_the_first_seeds(tree: dict[str, Any]) -> None:
    tree["grid"].update(seeds=[4, 1], pool_seeds=[3, 0], students=["wrn-10-1", "wrn-16-1"])
    without = set(graph(tree).nodes)
    tree["grid"]["controls"] = ["noise"]
    assert sorted(set(graph(tree).nodes) - without) == [
        "distill@wrn-10-1-wrn-10-1-noise-vanilla-3-4",
        "distill@wrn-10-1-wrn-16-1-noise-vanilla-3-4",
        "evaluate@wrn-10-1-wrn-10-1-noise",
        "evaluate@wrn-10-1-wrn-16-1-noise",
        "substitute@wrn-10-1-noise-3",
    ]
