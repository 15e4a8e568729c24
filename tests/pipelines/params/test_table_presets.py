"""The presets of the slides' tables: DVC's DAG has just the published cells, published values."""

from __future__ import annotations

import re
import shutil
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.graph.build import graph_of
from kdci.graph.node import Node
from pipelines.graph.current import current_graph
from pipelines.graph.dag import Dag, read_dag
from pipelines.params.edit import write_preset
from pipelines.params.presets import preset_file
from studies.published import published_setting
from tests.project_code import ROOT

CIFAR_PAIRS = [
    ("resnet-34", "resnet-18"),
    ("vgg-11", "resnet-18"),
    ("wrn-40-2", "wrn-16-1"),
    ("wrn-40-2", "wrn-40-1"),
    ("wrn-40-2", "wrn-16-2"),
]
SIX = ["dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd"]
THREE = ["fast", "deepinv", "dfnd"]
BOTH = ["vanilla", "kdci"]
TABLE4 = ["kdci", "kdci_random_lambda", "kdci_random_prototypes", "kdci_without_proportions"]


class Table(NamedTuple):
    """A preset's table as the slides print it."""

    dataset: str
    pairs: list[tuple[str, str]]
    methods: list[str]
    arms: list[str]
    num_cells: int
    lent_by: str | None = None


TABLES = {
    "table1-cifar10": Table("cifar10", CIFAR_PAIRS, SIX, BOTH, 60),
    "table1-cifar100": Table("cifar100", CIFAR_PAIRS, SIX, BOTH, 60),
    "table2": Table("tiny-imagenet", CIFAR_PAIRS[:1], THREE, BOTH, 6),
    "table3": Table(
        "imagenet",
        [("resnet-50", "resnet-18"), ("resnet-50", "mobilenetv2")],
        THREE,
        BOTH,
        12,
    ),
    # Table 4 prints KDCI and its ablations; what they are measured against is Table 1's vanilla.
    "table4": Table("cifar10", CIFAR_PAIRS[:1], THREE, ["vanilla", *TABLE4], 15),
    "table4-cifar100": Table("cifar100", CIFAR_PAIRS[:1], THREE, ["vanilla", *TABLE4], 15),
    "table5": Table(
        "cifar10", CIFAR_PAIRS[:2], THREE, [*BOTH, "kdci_other"], 18, lent_by="cifar100"
    ),
    "table5-cifar100": Table(
        "cifar100", CIFAR_PAIRS[:2], THREE, [*BOTH, "kdci_other"], 18, lent_by="cifar10"
    ),
}


def params_of(name: str) -> Params:
    return load_params(preset_file(name))


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dag]:
    """DVC's own reading of dvc.yaml with each preset."""
    found = {}
    for name in TABLES:
        root = tmp_path_factory.mktemp(name)
        (root / ".dvc").mkdir()
        (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        shutil.copy(ROOT / "dvc.yaml", root)
        write_preset(name, root / "params.yaml")
        current_graph(root)
        found[name] = read_dag(root)
    return found


def nodes(name: str, dag: Dag, stage: str) -> list[Node]:
    """Return the nodes of DVC's stages of a kind."""
    of_preset = graph_of(params_of(name), Path("/project")).nodes
    assert set(of_preset) == set(dag.stages)
    return [node for node in of_preset.values() if node.stage == stage]


@pytest.mark.parametrize("name", TABLES)
def test_dag_has_exactly_the_published_cells(name: str, dags: dict[str, Dag]) -> None:
    table = TABLES[name]
    expected = {
        (teacher, student, method, arm)
        for (teacher, student), method, arm in product(table.pairs, table.methods, table.arms)
    }
    made = [node.student for node in nodes(name, dags[name], "distill")]
    found = [(c.teacher, c.student, c.method, c.variant) for c in made if c is not None]
    assert len(found) == len(expected) == table.num_cells
    assert set(found) == expected
    assert params_of(name).data.name == table.dataset


@pytest.mark.parametrize("name", TABLES)
def test_what_students_are_made_from_is_made_once(name: str, dags: dict[str, Dag]) -> None:
    table = TABLES[name]
    teachers = len(dict.fromkeys(teacher for teacher, _ in table.pairs))
    lenders = teachers if table.lent_by else 0

    def count(stage: str, *, of_other: bool) -> int:
        return sum(node.of_other == of_other for node in nodes(name, dags[name], stage))

    assert count("teacher", of_other=False) == teachers
    for stage in ("substitute", "dictionary"):
        assert count(stage, of_other=False) == teachers * len(table.methods)
    assert count("evaluate", of_other=False) == len(table.pairs) * len(table.methods)
    assert count("teacher", of_other=True) == lenders
    assert count("dictionary", of_other=True) == lenders * len(table.methods)


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.lent_by])
def test_other_dictionary_is_the_same_backbones_on_the_other_dataset(
    name: str, dags: dict[str, Dag]
) -> None:
    params = params_of(name)
    assert params.other is not None and params.other.data.name == TABLES[name].lent_by
    made = nodes(name, dags[name], "distill")
    borrowing = [node for node in made if node.point["variant"] == "kdci_other"]
    assert len(borrowing) == len(TABLES[name].pairs) * len(THREE)
    for node in borrowing:
        (lent,) = [
            dep for dep in dags[name].stages[node.name].deps if "/other/dictionaries/" in dep
        ]
        lender = lent.split("/other/dictionaries/")[1].split("/")[0]
        assert lender == node.point["teacher"]


@pytest.mark.parametrize("name", TABLES)
def test_values_are_the_published_ones(name: str) -> None:
    params, table = params_of(name), TABLES[name]
    assert params.budget == 1.0
    for (teacher, student), method in product(table.pairs, table.methods):
        published = published_setting(method, table.dataset, teacher, student)
        assert params.method(method, teacher=teacher, student=student) == published.block
        assert params.recipe(method) == published.recipe


@pytest.mark.parametrize("name", TABLES)
def test_provenance_stands_beside_the_values(name: str) -> None:
    """Every sentence about where values come from is in the file, whatever its line breaks."""
    table = TABLES[name]
    comments = re.findall(r"#\s*(.*)", preset_file(name).read_text())
    told = " ".join(comments)
    for (teacher, student), method in product(table.pairs, table.methods):
        assert published_setting(method, table.dataset, teacher, student).provenance in told


def test_data_goes_into_the_other_model_too(tmp_path: Path) -> None:
    write_preset("table5", tmp_path / "params.yaml", data=str(tmp_path / "d"))
    params = load_params(tmp_path / "params.yaml")
    assert params.other is not None
    assert params.data.path == params.other.data.path == str(tmp_path / "d")
