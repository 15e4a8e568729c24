"""`kdci migrate` gives DVC what an earlier version made, and nothing that is in doubt."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from kdci.graph.standing import is_in_place
from kdci.store.artifacts import CARD
from kdci.store.hashing import hash_json
from pipelines.checking import migration
from pipelines.checking.migration import migrate
from pipelines.cli import run
from tests.conftest import Project
from tests.project_code import ROOT, without_git

OLD_CODE = "5" * 64
STUDENT = "distill@wrn-10-1-wrn-10-1-fast-kdci-0-0"
EVALUATION = "evaluate@wrn-10-1-wrn-10-1-fast"
TEACHER = "teacher@wrn-10-1"


def old_name(node: Any) -> str:
    """Return the name that a stage had in dvc.yaml."""
    if node.stage != "distill":
        return str(node.name)
    axes = [str(value) for axis, value in node.point.items() if axis != "variant"]
    return f"distill_{node.point['variant']}@{'-'.join(axes)}"


def rewrite(folder: Path, **changes: Any) -> None:
    """Change what a card says, and have it say that it is whole."""
    file = folder / CARD
    card = {**json.loads(file.read_text()), **changes}
    del card["card_sha256"]
    card["card_sha256"] = hash_json(card)
    file.write_text(json.dumps(card))


@pytest.fixture
def old(smoke_project: Project, tmp_path: Path) -> Project:
    """A project as an earlier version recorded it: names, cards, dvc.lock."""
    root = tmp_path / "old"
    shutil.copytree(smoke_project.root, root)
    (root / "cells.yaml").unlink()
    project = Project(root)
    entries = {}
    for node in project.graph.makers:
        params = project.graph.values(node)
        if node.stage == "evaluate":
            params |= {"grid.seeds": [0], "grid.arms": []}
        code = {"revision": "unknown", "hash": OLD_CODE}
        rewrite(node.artifact, stage=old_name(node), params=params, code=code)
        outs = [str(path.relative_to(root)) for path in (node.artifact, node.timing)]
        entries[old_name(node)] = {
            "cmd": f"python -m stages.{node.stage} --seed 0",
            "params": {"params.yaml": {"runtime": {}}},
            "outs": [{"path": out, "md5": "0" * 32} for out in outs],
        }
    entries["report"] = {"cmd": "python -m stages.report"}
    with (root / "dvc.lock").open("w") as out:
        YAML().dump({"schema": "2.0", "stages": entries}, out)
    return project


def locked(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe").load((project.root / "dvc.lock").read_text())
    return dict(found["stages"])


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the stages that DVC would have been told to record."""
    names: list[str] = []

    def commit(root: Path, asked: list[str]) -> dict[str, str | None]:
        names.extend(asked)
        return dict.fromkeys(asked)

    monkeypatch.setattr(migration, "commit", commit)
    return names


@pytest.mark.slow
def test_dvc_knows_all_that_was_made_and_only_the_report_is_made_again(
    old: Project, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {n: h for n, h in old.files().items() if not n.startswith(("cells.yaml", "dvc.lock"))}
    assert run(["--root", str(old.root), "migrate"]) == 0
    nodes = old.graph.makers
    said = capsys.readouterr().out
    assert f"taken over: {len(nodes)} artifacts" in said
    assert "dropped from dvc.lock: 4 entries" in said and "not taken" not in said
    assert {*locked(old)} == {"report", *(node.name for node in nodes)}
    after = old.files()
    assert {name: after[name] for name in before} == before, "an artifact is not as it was"
    status = subprocess.run(
        ["dvc", "status", "--json"], cwd=old.root, env=environment, capture_output=True, text=True
    )
    assert {*json.loads(status.stdout)} == {"cells", "report"}
    lock = (old.root / "dvc.lock").read_bytes()
    assert run(["--root", str(old.root), "migrate"]) == 0
    assert capsys.readouterr().out == "nothing to take over\n"
    assert (old.root / "dvc.lock").read_bytes() == lock


def test_what_is_in_doubt_is_left_with_the_reason(old: Project, committed: list[str]) -> None:
    old.edit(teacher__seed=7)
    graph = old.graph
    student, evaluation = graph.nodes[STUDENT], graph.nodes[EVALUATION]
    (student.artifact / "model.safetensors").write_bytes(b"damaged")
    evaluation.timing.unlink()
    of_now, gone = (graph.nodes[name] for name in (STUDENT.replace("kdci", "vanilla"),
                    EVALUATION.replace("fast", "dfnd")))  # fmt: skip
    rewrite(of_now.artifact, code={"revision": "unknown", "hash": "5" * 16})
    shutil.rmtree(gone.artifact)
    pool = graph.nodes["substitute@wrn-10-1-fast-0"]
    card = json.loads((pool.artifact / CARD).read_text())
    rewrite(pool.artifact, parents={**card["parents"], "teacher": "0" * 64})

    found = migrate(old.root)
    assert found.left[TEACHER] == "was made with other params"
    assert found.left[pool.name] == "was made with other parents"
    assert "model.safetensors" in found.left[STUDENT]
    assert "is missing" in found.left[EVALUATION]
    assert "by this version" in found.left[of_now.name]
    assert "not in the folder" in found.left[gone.name]
    assert found.taken == committed and not {*found.taken} & {*found.left}
    # What still says where DVC's cache has the result of a stage that is left stays.
    entries = locked(old)
    assert {old_name(student), old_name(of_now)} <= {*entries}
    assert {*found.dropped} == {old_name(n) for n in graph.of_stage("distill")} - {*entries}


def test_entries_that_know_cells_yaml_are_left_to_dvc(old: Project, committed: list[str]) -> None:
    """They were recorded since: what differs now differs for a reason."""
    yaml, file = YAML(), old.root / "dvc.lock"
    lock = yaml.load(file.read_text())
    lock["stages"][TEACHER]["params"]["cells.yaml"] = {"code.teacher": "x"}
    lock["stages"]["distill@gone"] = {"cmd": "x", "params": {"cells.yaml": {"code.x": "y"}}}
    with file.open("w") as out:
        yaml.dump(lock, out)
    found = migrate(old.root)
    assert TEACHER not in {*found.taken, *found.left}
    assert "distill@gone" in locked(old), "a grid may ask for it again"


def test_an_old_evaluation_that_says_more_is_in_place(old: Project) -> None:
    assert is_in_place(old.graph, old.graph.nodes[EVALUATION])
    old.edit(evaluate__batch_size=7)
    assert not is_in_place(old.graph, old.graph.nodes[EVALUATION])


def test_a_project_without_a_lock_file_and_without_artifacts(fresh: Project) -> None:
    (fresh.root / ".dvc").mkdir()
    without_git(fresh.root)
    shutil.copy(ROOT / "dvc.yaml", fresh.root)
    found = migrate(fresh.root)
    assert (found.taken, found.left, found.dropped) == ([], {}, [])
