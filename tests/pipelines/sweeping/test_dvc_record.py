"""Results that trials left, in a real DVC repository: recorded if sound, and found again."""

import json
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from pipelines.sweeping.dvc_record import record, recording, restorable

TEACHER, POOL = "teacher@wrn-10-1", "substitute@wrn-10-1-fast-0"


@pytest.fixture
def project(smoke_project, tmp_path):
    """A built experiment that DVC knows nothing of."""
    root = tmp_path / "project"
    shutil.copytree(smoke_project.root, root)
    return type(smoke_project)(root)


def changed(project):
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def locked(project, stage):
    lock = YAML(typ="safe").load((project.root / "dvc.lock").read_text())
    return lock["stages"][stage]


@pytest.mark.slow
def test_sound_results_are_recorded_and_stale_ones_never(project, call):
    project.edit(teacher__seed=0)  # as later edits write the file
    assert record(project.root, [TEACHER, POOL]) == {TEACHER: None, POOL: None}
    assert not {TEACHER, POOL} & set(changed(project))
    recorded = locked(project, TEACHER)

    project.edit(teacher__seed=5)
    outcome = record(project.root, [TEACHER, POOL])
    assert outcome == {TEACHER: "was made with other params", POOL: None}
    assert TEACHER in changed(project)
    assert locked(project, TEACHER) == recorded
    assert restorable(project.root, [TEACHER]) == []

    # The pool is not recorded upon a teacher that it was not made of.
    project.build(call("teacher"))
    outcome = record(project.root, [TEACHER, POOL])
    assert outcome == {TEACHER: None, POOL: "was made with other parents"}

    # Back to the old value: the run cache knows the result, as after `dvc repro`.
    project.edit(teacher__seed=0)
    assert restorable(project.root, [TEACHER]) == [TEACHER]
    assert changed(project)[TEACHER], "asking alone changed something"


@pytest.mark.slow
def test_results_are_recorded_as_they_come_and_all_before_the_end(project):
    names = [node.name for node in project.graph.of_stage("dictionary")]
    heard = {}
    with recording(project.root, heard.__setitem__) as have_recorded:
        for name in [TEACHER, POOL, *names]:
            have_recorded(name)
    assert heard == dict.fromkeys([TEACHER, POOL, *names])
    assert not set(heard) & set(changed(project))


def test_params_that_can_not_be_read_record_nothing(fresh):
    (fresh.root / "params.yaml").write_text("grid: [")
    shutil.copy("dvc.yaml", fresh.root)
    problem = record(fresh.root, [TEACHER])[TEACHER]
    assert "params.yaml" in problem
    assert not (fresh.root / "dvc.lock").exists()
