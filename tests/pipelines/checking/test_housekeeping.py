"""`kdci verify` sees every damaged byte; `kdci clean` removes only what nobody will use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from kdci.config.params import Params
from kdci.config.params_file import load_params, read_yaml
from kdci.graph.build import graph_of
from kdci.graph.cells import sources_of
from kdci.graph.node import Node
from kdci.store import artifacts
from kdci.store.hashing import hash_json
from kdci.store.layout import Layout
from pipelines.checking.housekeeping import clean, verify
from pipelines.params.edit import write_preset
from pipelines.params.presets import FOLDER
from tests.project_code import ROOT

Build = Callable[..., str]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    write_preset("digits-smoke", tmp_path / "params.yaml")
    return Layout(tmp_path, "digits-smoke")


@pytest.fixture
def params(layout: Layout) -> Params:
    return load_params(layout.root / "params.yaml")


@pytest.fixture
def stages(params: Params, layout: Layout) -> Mapping[str, Node]:
    return graph_of(params, layout.root).nodes


def made_of(layout: Layout, node: Node, params: Params | None = None) -> dict[str, Any]:
    graph = graph_of(params or load_params(layout.root / "params.yaml"), layout.root)
    code = sources_of(graph).fingerprint(node.code)
    return {"params": graph.values(node), "parents": {}, "code": code}


@pytest.fixture
def build(layout: Layout) -> Build:
    """Return what writes a node's artifact and returns its content hash."""

    def of(node: Node, parents: dict[str, str] | None = None, **changes: Any) -> str:
        card = made_of(layout, node, **changes)
        card |= {"parents": parents or {}, "facts": {}}
        card["code"] = {"revision": "unknown", "hash": card["code"]}
        with artifacts.new_artifact(node.artifact, kind=node.kind, card=card) as draft:
            draft.save_json("values.json", [node.name, 1, 2, 3])
        return str(artifacts.read_card(node.artifact, kind=node.kind)["content"])

    return of


def begin(layout: Layout, node: Node, of: Params | None = None, **changes: Any) -> Path:
    """Leave the work folder of a stage that was killed."""
    identity = {**made_of(layout, node, of), **changes}
    key = hash_json(identity)
    folder = layout.work / "work" / node.name / key[:16]
    folder.mkdir(parents=True)
    identity |= {"key": key, "artifact": str(node.artifact.relative_to(layout.root))}
    (folder / "identity.json").write_text(json.dumps(identity))
    (folder / "checkpoint").write_bytes(b"x" * 1000)
    return folder


TEACHER = "teacher@wrn-10-1"
POOL = "substitute@wrn-10-1-dfnd-0"
STUDENT = "distill@wrn-10-1-wrn-10-1-dfnd-kdci-0-0"


def test_verify_tells_intact_from_missing(
    params: Params, layout: Layout, stages: Mapping[str, Node], build: Build
) -> None:
    build(stages[TEACHER])
    build(stages[STUDENT])
    found = verify(params, layout)
    assert {stage.name for stage in found.intact} == {TEACHER, STUDENT}
    assert {stage.name for stage in found.missing} == stages.keys() - {TEACHER, STUDENT, "report"}
    assert found.problems == []


def flip_a_bit(path: Path) -> Path:
    file = path / "values.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def truncate(path: Path) -> Path:
    file = path / "values.json"
    file.write_bytes(file.read_bytes()[:-1])
    return file


def empty(path: Path) -> Path:
    (path / "values.json").write_bytes(b"")
    return path / "values.json"


def lose(path: Path) -> Path:
    (path / "values.json").unlink()
    return path / "values.json"


def lose_the_card(path: Path) -> Path:
    (path / "card.json").unlink()
    return path


def edit_the_card(path: Path) -> Path:
    card = path / "card.json"
    card.write_text(card.read_text().replace('"facts": {}', '"facts": {"accuracy": 100}'))
    return card


def pickle_instead(path: Path) -> Path:
    (path / "values.json").write_bytes(b"\x80\x04" + b"." * 30)
    return path / "values.json"


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, truncate, empty, lose, lose_the_card, edit_the_card, pickle_instead],
)
def test_verify_names_stage_and_path_of_damage(
    params: Params, layout: Layout, stages: Mapping[str, Node], damage: Any, build: Build
) -> None:
    build(stages[TEACHER])
    build(stages[POOL])
    place = damage(stages[POOL].artifact)
    found = verify(params, layout)
    (problem,) = found.problems
    assert problem.exit_code == 3
    (line,) = problem.lines()
    assert line.startswith(f"kdci: error: {place}: ")
    assert POOL in line
    assert [stage.name for stage in found.intact] == [TEACHER]


def test_verify_finds_all_damage_and_an_artifact_of_another_kind(
    params: Params, layout: Layout, stages: Mapping[str, Node], build: Build
) -> None:
    build(stages[TEACHER])
    flip_a_bit(stages[TEACHER].artifact)
    build(stages[POOL])
    stages[STUDENT].artifact.parent.mkdir(parents=True)
    stages[POOL].artifact.rename(stages[STUDENT].artifact)
    found = verify(params, layout)
    assert [problem.exit_code for problem in found.problems] == [3, 3]
    assert "is a pool, not a student" in str(found.problems[1])


def test_clean_keeps_what_a_run_goes_on_from(
    params: Params, layout: Layout, stages: Mapping[str, Node], build: Build
) -> None:
    content = build(stages[TEACHER])
    kept = [
        begin(layout, stages[POOL], parents={"teacher": content}),
        # Its parents are not there now: they may be checked out again.
        begin(layout, stages[STUDENT], parents={"pool": "a", "dictionary": "b"}),
    ]
    assert clean(params, layout) == []
    assert all((folder / "checkpoint").is_file() for folder in kept)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"params": {"runtime": {}}}, "other params"),
        ({"code": "0" * 64}, "other code"),
        ({"parents": {"teacher": "0" * 64}}, "made anew"),
    ],
)
def test_clean_removes_what_no_run_goes_on_from(
    params: Params,
    layout: Layout,
    stages: Mapping[str, Node],
    changes: dict[str, Any],
    reason: str,
    build: Build,
) -> None:
    build(stages[TEACHER])
    folder = begin(layout, stages[POOL], **changes)
    size = sum(file.stat().st_size for file in folder.iterdir())
    (planned,) = clean(params, layout, dry_run=True)
    assert folder.is_dir()
    (removal,) = clean(params, layout)
    assert removal == planned
    assert (removal.path, removal.num_bytes) == (folder, size)
    assert reason in removal.reason
    assert not folder.parent.exists()
    assert stages[TEACHER].artifact.is_dir()


@pytest.fixture
def full(layout: Layout) -> Params:
    """Params with another model, whose pipeline lies in a branch of its own, and a shift."""
    tree = read_yaml(layout.root / "params.yaml")
    tree["grid"].update(others=["wrn-10-1"], shifts=["tail"], shift_arms=["vanilla"])
    tree["compensation"]["fusion"] = "residual"
    tree["other"] = {"data": {"name": "digits5", "path": None}}
    tree["shift"], tree["shifts"] = {"base": "fast", "num_images": 40}, {"tail": {}}
    return Params.model_validate(tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("substitute@other-wrn-10-1-fast-0", {"teacher": "teacher@other-wrn-10-1"}),
        (
            "dictionary@other-wrn-10-1-fast-0",
            {"teacher": "teacher@other-wrn-10-1", "pool": "substitute@other-wrn-10-1-fast-0"},
        ),
        (
            "distill@wrn-10-1-wrn-10-1-fast-kdci_other-0-0",
            {"teacher": TEACHER, "dictionary": "dictionary@other-wrn-10-1-fast-0"},
        ),
        ("shift@wrn-10-1-tail-0", {"teacher": TEACHER, "base": "substitute@wrn-10-1-fast-0"}),
    ],
)
def test_clean_knows_the_parents_of_others_and_shifts(
    full: Params, layout: Layout, name: str, roles: dict[str, str], build: Build
) -> None:
    """It keeps what goes on from its own parents, and nothing once one of them is made anew."""
    nodes = graph_of(full, layout.root).nodes
    parents = {role: build(nodes[parent], params=full) for role, parent in roles.items()}
    for node in nodes.values():  # the teacher's twins of the other model's artifacts
        if not node.artifact.exists() and node.kind in ("teacher", "pool", "dictionary"):
            build(node, params=full)
    kept = begin(layout, nodes[name], full, parents=parents)
    assert clean(full, layout) == [] and kept.exists()
    for role, parent in roles.items():
        stale = begin(layout, nodes[name], full, parents={**parents, role: "0" * 64})
        assert [removal.path for removal in clean(full, layout)] == [stale], parent
    assert kept.exists()


def test_clean_removes_work_whose_artifact_is_in_place(
    params: Params, layout: Layout, stages: Mapping[str, Node], build: Build
) -> None:
    folder = begin(layout, stages[TEACHER])
    build(stages[TEACHER], parents={"other": "x"})
    assert clean(params, layout) == []
    build(stages[TEACHER])
    (removal,) = clean(params, layout)
    assert (removal.path, removal.reason) == (folder, "its artifact is in place")


def test_clean_removes_cells_out_of_the_grid_and_folders_without_identity(
    params: Params, layout: Layout, stages: Mapping[str, Node]
) -> None:
    folder = begin(layout, stages[STUDENT])
    gone = folder.parent.rename(folder.parent.with_name(STUDENT[:-1] + "9"))
    nameless = layout.work / "work" / POOL / ("0" * 16)
    nameless.mkdir(parents=True)
    (nameless / "identity.json").write_text("[")
    reasons = {removal.path.parent.name: removal.reason for removal in clean(params, layout)}
    assert reasons == {
        gone.name: "not in the grid of params.yaml",
        POOL: "does not say what it is of",
    }


def test_clean_leaves_alone_what_a_live_process_holds(
    params: Params, layout: Layout, stages: Mapping[str, Node]
) -> None:
    folder = begin(layout, stages[TEACHER], code="other")
    unfinished = stages[TEACHER].artifact.with_name(".wrn-10-1.abcd_123.tmp")
    unfinished.mkdir(parents=True)
    lock = FileLock(layout.work / "locks" / f"{TEACHER}.lock")
    (layout.work / "locks").mkdir()
    with lock:
        assert clean(params, layout) == []
        assert folder.is_dir()
        assert unfinished.is_dir()
    assert {removal.path for removal in clean(params, layout)} == {folder, unfinished}


def test_clean_removes_unfinished_folders_and_nothing_like_them(
    params: Params, layout: Layout, stages: Mapping[str, Node], build: Build
) -> None:
    build(stages[POOL])
    parent = stages[POOL].artifact.parent
    leftovers = [parent / ".pool0.abcdefgh.tmp", parent / ".pool0.old.tmp"]
    mine = [parent / "notes.tmp", parent / ".pool0.tmp", parent / ".pool0.ABCDEFGH.tmp"]
    for folder in (*leftovers, *mine):
        folder.mkdir()
        (folder / "file").write_bytes(b"12345")
    removals = clean(params, layout)
    assert sorted(removal.path for removal in removals) == sorted(leftovers)
    assert {removal.num_bytes for removal in removals} == {5}
    assert all(folder.is_dir() for folder in mine)
    assert not any(folder.exists() for folder in leftovers)
    assert verify(params, layout).problems == []


def test_clean_follows_no_link(
    params: Params, layout: Layout, stages: Mapping[str, Node], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    folder = begin(layout, stages[TEACHER], code="other")
    os.symlink(outside, folder / "link")
    os.symlink(outside, layout.work / "work" / "linked")
    (removal,) = clean(params, layout)
    assert removal.path == folder
    assert (outside / "precious").is_file()


def test_clean_of_a_fresh_project_makes_nothing(params: Params, layout: Layout) -> None:
    assert clean(params, layout) == []
    assert os.listdir(layout.root) == ["params.yaml"]


def test_clean_knows_the_finished_teacher_that_one_adopts(layout: Layout, build: Build) -> None:
    tree = read_yaml(layout.root / "params.yaml")
    tree["teacher"]["artifact"] = "finished"
    params = Params.model_validate(tree)
    teacher = graph_of(params, layout.root).nodes[TEACHER]
    content = build(replace(teacher, artifact=layout.root / "finished"), params=params)
    kept = begin(layout, teacher, params, parents={"adopted": content})
    assert clean(params, layout) == [] and kept.exists()
    stale = begin(layout, teacher, params, parents={"adopted": "0" * 64})
    assert [removal.path for removal in clean(params, layout)] == [stale]


def test_clean_goes_by_the_code_of_the_stage_alone(
    params: Params, layout: Layout, stages: Mapping[str, Node]
) -> None:
    """An edit of one method's file is nothing to another's checkpoints; so is a comment."""
    kept, stale = (begin(layout, stages[name]) for name in (POOL, POOL.replace("dfnd", "fast")))
    assert clean(params, layout) == []
    shutil.copytree(ROOT / "kdci", layout.root / "kdci")
    shutil.copytree(ROOT / "stages", layout.root / "stages")
    edited = layout.root / "kdci/methods/fast.py"
    edited.write_text(edited.read_text() + "# a comment\n")
    assert clean(params, layout) == []
    edited.write_text(edited.read_text() + "CHANGED = True\n")
    (removal,) = clean(params, layout)
    assert (removal.path, removal.reason) == (stale, "begun with other code")
    assert kept.exists()


def test_verify_names_stages_of_pairs_and_controls_as_dvc_does(
    layout: Layout, build: Build
) -> None:
    tree = read_yaml(layout.root / "params.yaml")
    pairs = [{"teacher": "wrn-10-1", "student": name} for name in ("wrn-16-1", "wrn-10-1")]
    tree["grid"].update(students=[], pairs=pairs, methods=["dfnd"], controls=["noise"])
    preset = read_yaml(FOLDER / "digits.yaml")
    for block in ("methods", "recipes"):
        tree[block]["noise"] = preset[block]["noise"]
    params = Params.model_validate(tree)
    damaged = graph_of(params, layout.root).nodes[STUDENT]
    build(damaged, params=params)
    flip_a_bit(damaged.artifact)
    found = verify(params, layout)
    (problem,) = found.problems
    assert problem.what.endswith(f"made by {STUDENT}")
    missing = {stage.name for stage in found.missing}
    assert {
        "distill@wrn-10-1-wrn-16-1-dfnd-vanilla-0-0",
        "substitute@wrn-10-1-noise-0",
    } <= missing
