"""How many students an edit makes stale: just those whose result can change.

A node is stale if what it depends on is: its values, its code, or what it is made from. That DVC
runs the nodes with just these dependencies is the business of tests/test_pipeline.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.graph.build import Graph, graph_of
from kdci.graph.code import Sources
from kdci.graph.node import Node
from kdci.store.hashing import hash_json
from pipelines.params.presets import preset_file
from tests.project_code import copy_code

PRESETS = ("shift-digits", "table1-cifar10", "digits")
NEW_PAIR = [{"teacher": "wrn-40-2", "student": "resnet-18"}]
MORE_SEEDS = {
    "shift-digits": {"pool_seeds": [0, 1, 2, 3, 4, 5]},
    "table1-cifar10": {"seeds": [0, 1]},
    "digits": {"seeds": [0, 1, 2, 3]},
}
FIRST = {"digits": {"students": ["resnet-18", "wrn-10-1"]}}
FIRST["shift-digits"] = FIRST["digits"]

Stamps = dict[str, str]
"""By student, a hash of all that it depends on."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stale") / "project"
    copy_code(root)
    return root


def tree_of(preset: str) -> dict[str, Any]:
    return read_yaml(preset_file(preset))


def stamps(project: Path, tree: Mapping[str, Any]) -> Stamps:
    """Return what each student depends on, all the way up."""
    graph: Graph = graph_of(Params.model_validate(tree), project)
    sources = Sources(project, memory=project / "code.json")

    @cache
    def stamp(name: str) -> str:
        node: Node = graph.nodes[name]
        parents = {
            role: stamp(graph.by_artifact[parent.path].name)
            for role, parent in node.parents.items()
        }
        return hash_json([graph.values(node), sources.fingerprint(node.code), parents])

    found = {node.name: stamp(node.name) for node in graph.of_stage("distill")}
    sources.remember()
    return found


def stale(before: Stamps, after: Stamps) -> tuple[int, int]:
    """Return how many students are there before and after and differ, and how many are new."""
    both = before.keys() & after.keys()
    return sum(before[name] != after[name] for name in both), len(after.keys() - both)


def edited(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split(".")
    node = tree
    for part in path:
        node = node[part]
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # shift-digits resamples Fast's pools: all of its students descend from them.
        ("methods.fast.one_hot_weight", 7.0, (290, 10, 6)),
        # KDCI's students, and of shift-digits those with strata too.
        ("compensation.scale", 3.0, (85, 30, 18)),
        # One arm adds log proportions; two draw with a cap, over what `strata` says.
        ("intervention.tau", 3.0, (40, 0, 0)),
        ("intervention.max_repeats", 3.0, (80, 0, 0)),
        ("intervention.strata", "prototypes", (80, 0, 0)),
        ("evaluate.batch_size", 7, (0, 0, 0)),
    ],
)
def test_a_value(project: Path, key: str, value: Any, expected: tuple[int, ...]) -> None:
    found = [
        stale(stamps(project, tree_of(name)), stamps(project, edited(tree_of(name), key, value)))
        for name in PRESETS
    ]
    assert found == [(number, 0) for number in expected]


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("methods/fast.py", (290, 10, 6)),
        ("deconfounding/compensation.py", (85, 30, 18)),
        ("deconfounding/strata.py", (160, 0, 0)),
        ("deconfounding/logit_adjustment.py", (40, 0, 0)),
        ("deconfounding/known_shift.py", (280, 0, 0)),
        ("training/scoring.py", (0, 0, 0)),  # evaluations alone
    ],
)
def test_a_file(project: Path, file: str, expected: tuple[int, ...]) -> None:
    before = [stamps(project, tree_of(name)) for name in PRESETS]
    path = project / "kdci" / file
    original, times = path.read_text(), path.stat()
    try:
        path.write_text(original + "\nCHANGED = True\n")
        after = [stamps(project, tree_of(name)) for name in PRESETS]
    finally:
        path.write_text(original)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = [stale(one, other) for one, other in zip(before, after, strict=True)]
    assert found == [(number, 0) for number in expected]


@pytest.mark.parametrize(
    ("preset", "edit", "new"),
    [
        ("table1-cifar10", "the order of pairs", 0),
        # Six methods, two arms.
        ("table1-cifar10", "a pair in front", 12),
        # With three seeds, and the control.
        ("digits", "a pair in front", 37),
        ("shift-digits", "a pair in front", 290),
        ("table1-cifar10", "a seed more", 60),
        # Of a control there is one student, whatever the seeds.
        ("digits", "a seed more", 12),
        # Fast's two students, and eight shifts with seven arms.
        ("shift-digits", "a seed more", 58),
    ],
)
def test_the_grid(project: Path, preset: str, edit: str, new: int) -> None:
    """What is there stays, wherever it stands in the grid."""
    tree = tree_of(preset)
    grid = tree["grid"]
    if edit == "the order of pairs":
        grid["pairs"] = grid["pairs"][::-1]
    elif edit == "a seed more":
        grid |= MORE_SEEDS[preset]
    else:
        grid |= FIRST.get(preset, {"pairs": NEW_PAIR + grid["pairs"]})
    assert stale(stamps(project, tree_of(preset)), stamps(project, tree)) == (0, new)
