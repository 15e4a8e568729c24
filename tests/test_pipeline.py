"""DVC runs just what the graph says, and runs again what a change reaches, no more."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdci.graph.cells import CELLS_STAGE, LOOKED_FILE, renew_cells
from tests.conftest import Project


class Dvc:
    """A project that DVC has recorded; asked with changed params, never run."""

    def __init__(self, root, environment):
        self.root, self.environment = root, environment

    def __call__(self, *arguments):
        command = ["dvc", *arguments]
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments):
        """Return what a command that fails says."""
        done = subprocess.run(
            ["dvc", *arguments], cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def repo(self):
        from dvc.repo import Repo

        return Repo(str(self.root))

    def stages(self):
        """Return the stages by name, the look at cells.yaml left out."""
        with self.repo() as repo:
            return {_name(s): s for s in repo.index.stages if _name(s) != CELLS_STAGE}

    def names(self):
        return list(self.stages())

    def stale(self, project, **values):
        """Return the stages that are stale themselves, and those with all that follow them."""
        from networkx import descendants

        params = self.root / "params.yaml"
        original = params.read_text()
        try:
            project.edit(**values)
            renew_cells(project.graph)
            with self.repo() as repo:
                changed = {name.rsplit(":", 1)[-1] for name in repo.status()} - {CELLS_STAGE}
                graph = repo.index.graph  # edges go from a stage to what it depends on
                followers = {
                    _name(stage)
                    for stage in graph
                    if changed & {_name(earlier) for earlier in descendants(graph, stage)}
                }
        finally:
            params.write_text(original)
            renew_cells(project.graph)
        return changed, changed | followers


def _name(stage):
    """Return a stage's name; DVC puts the file before it when asked from elsewhere."""
    return stage.addressing.rsplit(":", 1)[-1]


@pytest.fixture(scope="module")
def recorded(smoke_project, environment, tmp_path_factory):
    """The built project, with its state recorded in dvc.lock."""
    root = tmp_path_factory.mktemp("recorded") / "project"
    shutil.copytree(smoke_project.root, root)
    project = type(smoke_project)(root)
    renew_cells(project.graph)
    dvc = Dvc(root, environment)
    dvc("commit", "--force", "--quiet")
    return project, dvc


@pytest.fixture(scope="module")
def dvc(recorded):
    return recorded[1]


def expected(method=None, stages=(), seeds=(0,)):
    """Return stage names of one method's cells; of a student by its arm."""
    pair, names = "wrn-10-1-wrn-10-1", set()
    for stage in stages:
        if stage in ("substitute", "dictionary"):
            names.add(f"{stage}@wrn-10-1-{method}-0")
        elif stage == "evaluate":
            names.add(f"evaluate@{pair}-{method}")
        elif stage == "report":
            names.add(stage)
        else:
            names |= {f"distill@{pair}-{method}-{stage}-0-{seed}" for seed in seeds}
    return names


ARM_CELLS = {
    f"distill@wrn-10-1-wrn-10-1-{method}-logit_adjusted-0-0" for method in ("fast", "dfnd")
}
SHIFT_CELLS = {
    "shift@wrn-10-1-tail-0",
    "dictionary@wrn-10-1-tail-0",
    "distill@wrn-10-1-wrn-10-1-tail-vanilla-0-0",
    "distill@wrn-10-1-wrn-10-1-tail-kdci-0-0",
    "evaluate@wrn-10-1-wrn-10-1-tail",
}
STUDENTS = ("vanilla", "kdci")
AFTER = ("evaluate", "report")


FULL = {
    "grid__methods": ["fast"],
    "grid__controls": ["noise"],
    "grid__arms": ["stratified", "logit_adjusted"],
    "grid__others": ["wrn-16-1"],
    "grid__shifts": ["balanced", "tail"],
    "grid__shift_arms": ["vanilla", "kdci_stratified"],
    "grid__pool_seeds": [0, 3],
    "compensation__fusion": "residual",
    "other": {"data": {"name": "digits5", "path": None, "test": "test", "facts": None}},
    "shift": {"base": "fast", "num_images": 40, "temperature": 4.0},
    "shifts": {"balanced": {}, "tail": {"imbalance": 4.0}},
}
"""Params that use every axis of the grid."""


# -- what DVC is told ------------------------------------------------------------------------------

PAIRS = [("wrn-16-1", "wrn-10-1"), ("vgg-11", "wrn-10-1"), ("vgg-11", "wrn-16-1")]
LISTED = {
    **{key: value for key, value in FULL.items() if "shift" not in key},
    "grid__shifts": [],
    "grid__teachers": ["wrn-16-1", "vgg-11"],
    "grid__students": [],
    "grid__pairs": [{"teacher": teacher, "student": student} for teacher, student in PAIRS],
    "grid__others": ["wrn-16-1", "wrn-10-1"],
    "grid__other_pairs": [
        {"teacher": teacher, "student": student, "other": other}
        for (teacher, student), other in zip(
            PAIRS, ("wrn-16-1", "wrn-10-1", "wrn-10-1"), strict=True
        )
    ],
}


@pytest.mark.parametrize("edits", [{}, FULL, LISTED], ids=["smoke", "every axis", "listed pairs"])
def test_dvc_runs_the_nodes_of_the_graph_with_just_what_they_depend_on(recorded, edits):
    project, dvc = recorded
    params = dvc.root / "params.yaml"
    original = params.read_text()
    try:
        graph = project.edit(**edits).graph
        renew_cells(graph)
        stages = dvc.stages()
    finally:
        params.write_text(original)
        renew_cells(project.graph)
    assert set(stages) == set(graph.nodes)

    def place(path):
        return str(path.relative_to(dvc.root))

    for name, node in graph.nodes.items():
        stage = stages[name]
        words = ["python", "-m", f"stages.{node.stage}", *([node.cell] if node.cell else [])]
        assert stage.cmd.split() == words
        files = {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}
        keys = {dep.def_path: set(dep.params) for dep in stage.deps if hasattr(dep, "params")}
        assert keys["params.yaml"] == set(node.blocks.values())
        assert f"code.{node.code.name}" in keys["cells.yaml"]
        if node.stage == "report":  # of whatever there is
            assert files == {f"artifacts/digits-smoke/{kind}" for kind in
                             ("teachers", "pools", "dictionaries", "evaluations")}  # fmt: skip
            continue
        assert {out.def_path for out in stage.outs} == {place(node.artifact), place(node.timing)}
        parents = {place(parent.path) for parent in node.parents.values()}
        if node.stage == "evaluate":  # the folders that hold its students and its pools
            assert keys["cells.yaml"] > {f"code.{node.code.name}"}
            assert all(any(p == f or p.startswith(f"{f}/") for f in files) for p in parents)
        else:
            looked = {LOOKED_FILE} if node.stage == "teacher" else set()
            assert files == parents | looked


@pytest.mark.slow
def test_an_edit_of_the_grid_never_runs_the_old_cells(recorded, tmp_path):
    """`dvc repro` renews cells.yaml, says so in one line, and has run nothing."""
    root = tmp_path / "project"
    shutil.copytree(recorded[1].root, root)
    project, dvc = Project(root), Dvc(root, recorded[1].environment)
    project.edit(grid__seeds=[0, 1])
    refused = dvc.refused("repro")
    assert refused.count("kdci: error: cells.yaml: ") == 1 and "it is renewed" in refused
    assert "distill@" not in refused
    renewed = (root / "cells.yaml").read_text()
    assert "-vanilla-0-1" in renewed
    # So it does where one stage is asked for, and after an edit of code.
    file = root / "kdci/methods/fast.py"
    file.write_text(file.read_text() + "\nCHANGED = True\n")
    student = "distill@wrn-10-1-wrn-10-1-fast-vanilla-0-0"
    assert "it is renewed" in dvc.refused("repro", student)
    assert (root / "cells.yaml").read_text() != renewed
    assert f"Running stage '{student}'" in dvc("repro", student)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        {"grid__teachers": ["wrn-10-1; touch PWNED #"]},
        {"grid__students": ["$(touch PWNED)"]},
        {"preset": "x; touch PWNED"},
        {"grid__methods": ["fast`touch PWNED`"]},
        {"cells": {"teacher": {"x; touch PWNED #": {}}}},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_no_value_of_the_params_reaches_a_shell(recorded, tmp_path, edit):
    root = tmp_path / "project"
    shutil.copytree(recorded[1].root, root)
    Project(root).edit(**edit)
    dvc = Dvc(root, recorded[1].environment)
    dvc.refused("repro", "--force")
    dvc.refused("repro", "--force", "--keep-going")
    assert not list(root.rglob("PWNED"))


# -- what runs again ----------------------------------------------------------------------------

LOOKED = {CELLS_STAGE: ["always changed"]}
"""What `dvc status` says where nothing has changed."""


def test_nothing_is_stale_after_a_build(recorded):
    project, dvc = recorded
    assert json.loads(dvc("status", "--json")) == LOOKED
    assert dvc.stale(project) == (set(), set())
    said = dvc("repro", "--dry")
    assert said.count("didn't change, skipping") == len(dvc.names())


@pytest.mark.parametrize(
    ("values", "changed", "followers"),
    [
        pytest.param(
            {"methods__dfnd__num_selected": 60},
            expected("dfnd", ("substitute", *STUDENTS)),
            expected("dfnd", ("substitute", "dictionary", *STUDENTS, *AFTER)),
            id="a method's block",
        ),
        pytest.param(
            {"methods__dfnd__open_world": {"source": "photographs", "num_images": 100}},
            expected("dfnd", ("substitute", *STUDENTS)),
            expected("dfnd", ("substitute", "dictionary", *STUDENTS, *AFTER)),
            id="a method's open world",
        ),
        pytest.param(
            {"recipes__fast__learning_rate": 0.05},
            expected("fast", STUDENTS),
            expected("fast", (*STUDENTS, *AFTER)),
            id="a method's recipe",
        ),
        pytest.param(
            {"compensation__fusion": "linear"},
            expected("fast", ("kdci",)) | expected("dfnd", ("kdci",)),
            expected("fast", ("kdci", *AFTER)) | expected("dfnd", ("kdci", *AFTER)),
            id="the compensation",
        ),
        pytest.param(
            {"dictionary__num_prototypes": 5},
            expected("fast", ("dictionary",)) | expected("dfnd", ("dictionary",)),
            expected("fast", ("dictionary", "kdci", *AFTER))
            | expected("dfnd", ("dictionary", "kdci", *AFTER)),
            id="the dictionary",
        ),
        pytest.param(
            {"grid__seeds": [0, 1]},
            expected("fast", ("evaluate",))
            | expected("dfnd", AFTER)
            | expected("fast", STUDENTS, seeds=(1,))
            | expected("dfnd", STUDENTS, seeds=(1,)),
            expected("fast", ("evaluate",))
            | expected("dfnd", AFTER)
            | expected("fast", STUDENTS, seeds=(1,))
            | expected("dfnd", STUDENTS, seeds=(1,)),
            id="one more seed",
        ),
        pytest.param(
            {"grid__arms": ["logit_adjusted"]},
            ARM_CELLS | expected("fast", ("evaluate",)) | expected("dfnd", AFTER),
            ARM_CELLS | expected("fast", ("evaluate",)) | expected("dfnd", AFTER),
            id="one more arm",
        ),
        pytest.param(
            {"intervention__tau": 2.0},
            set(),
            set(),
            id="what no arm of the grid uses",
        ),
        pytest.param(
            {
                "grid__shifts": ["tail"],
                "grid__shift_arms": ["vanilla", "kdci"],
                "shift": {"base": "fast", "num_images": 40, "temperature": 4.0},
                "shifts": {"tail": {"imbalance": 4.0}},
            },
            SHIFT_CELLS | {"report"},
            SHIFT_CELLS | {"report"},
            id="a known shift",
        ),
        pytest.param(
            {"grid__methods": ["fast"]},
            {"report"},
            {"report"},
            id="one method less",
        ),
        pytest.param(
            {"evaluate__deploy": "compensated"},
            expected("fast", ("evaluate",)) | expected("dfnd", ("evaluate",)),
            expected("fast", AFTER) | expected("dfnd", AFTER),
            id="how students are scored",
        ),
    ],
)
def test_change_reaches_what_depends_on_it_and_nothing_else(recorded, values, changed, followers):
    project, dvc = recorded
    assert dvc.stale(project, **values) == (changed, followers)


def test_change_of_one_methods_code_reaches_that_method_alone(recorded):
    project, dvc = recorded
    file = dvc.root / "kdci/methods/dfnd.py"
    original = file.read_bytes()
    try:
        file.write_bytes(original + b"\n# a comment\n")
        assert dvc.stale(project)[0] == set()
        file.write_bytes(original + b"\nCHANGED = True\n")
        changed, _ = dvc.stale(project)
    finally:
        file.write_bytes(original)
    assert changed == expected("dfnd", ("substitute", *STUDENTS))


@pytest.mark.slow
def test_repro_runs_the_stale_stages_and_gives_the_bytes_of_a_build(
    recorded, smoke_project, environment, tmp_path
):
    """One real `dvc repro` from nothing, then one after a change."""
    root = tmp_path / "project"
    skip = shutil.ignore_patterns("artifacts", "report", ".kdci")
    shutil.copytree(smoke_project.root, root, ignore=lambda d, names: (
        skip(d, names) if Path(d) == smoke_project.root else []))  # fmt: skip
    project, dvc = type(smoke_project)(root), Dvc(root, environment)

    renew_cells(project.graph)
    dvc("repro")
    for call in project.calls()[:-1]:
        assert project.content(call) == smoke_project.content(call), call.name
    assert json.loads(dvc("status", "--json")) == LOOKED

    project.edit(compensation__fusion="linear")
    said = dvc("repro")  # cells are as they were: only values have changed
    ran = set(re.findall(r"Running stage '(\S+)'", said))
    followers = expected("fast", ("kdci", *AFTER)) | expected("dfnd", ("kdci", *AFTER))
    assert ran == followers | {CELLS_STAGE}


@pytest.mark.slow
def test_repro_runs_every_kind_of_stage(smoke_project, environment, tmp_path):
    """Arms, known shifts, a control and another model, by one real `dvc repro` from nothing."""
    root = tmp_path / "project"
    skip = shutil.ignore_patterns("artifacts", "report", ".kdci")
    shutil.copytree(smoke_project.root, root, ignore=lambda d, names: (
        skip(d, names) if Path(d) == smoke_project.root else []))  # fmt: skip
    project, dvc = type(smoke_project)(root), Dvc(root, environment)
    # A teacher and a pool that know all classes well, on every processor, or none could be
    # balanced.
    knowing = {
        "teacher__num_epochs": 14,
        "teacher__batch_size": 64,
        "methods__fast__warmup_calls": 12,
        "methods__fast__batch_size": 32,
        "methods__fast__num_steps": 10,
        "methods__fast__one_hot_weight": 3.0,
    }
    project.edit(**{**FULL, **knowing, "grid__pool_seeds": [0]})
    renew_cells(project.graph)
    dvc("repro")
    assert json.loads(dvc("status", "--json")) == LOOKED
    rows = json.loads((root / "report/results.json").read_text())
    assert {row["variant"] for row in rows if row["method"] == "fast"} == {
        "vanilla", "kdci", "stratified", "logit_adjusted", "kdci_other"
    }  # fmt: skip
    assert {row["method"] for row in rows} == {"fast", "noise", "balanced", "tail"}
    assert all(row["accuracy"] is not None for row in rows)
    report = (root / "report/report.md").read_text()
    for heading in ("## Arms", "## Known shifts", "## Distribution shift"):
        assert f"\n{heading}\n" in report
