"""What may be taken for a result: made of the current params, parents and code, and whole."""

import shutil
from dataclasses import replace

import pytest

from kdci.store.artifacts import new_artifact
from pipelines.sweeping import expected
from pipelines.sweeping.expected import read_expected
from stages import _provenance

TEACHER = "artifacts/digits-smoke/teachers/wrn-10-1"
POOL = "artifacts/digits-smoke/pools/wrn-10-1/fast/pool0"


def test_results_of_the_current_params_are_what_is_expected(built):
    _, found = read_expected(built.root)
    assert {path: result.difference() for path, result in found.items()} == dict.fromkeys(found)
    kinds = [result.kind for result in found.values()]
    assert sorted(set(kinds)) == ["dictionary", "pool", "student", "teacher"]
    assert len(kinds) == 1 + 2 + 2 + 4


def test_code_is_that_of_the_project_folder(built):
    assert expected.code_hash(built.root) == _provenance.code_hash()
    (built.root / "stages").mkdir()
    (built.root / "stages/__init__.py").touch()
    text = "def code_hash():\n    return 'its own'\n"
    (built.root / "stages/_provenance.py").write_text(text)
    assert expected.code_hash(built.root) == "its own"


def test_other_params_or_code_are_noticed(built):
    _, found = read_expected(built.edit(teacher__seed=5).root)
    assert found[TEACHER].difference() == "was made with other params"
    assert found[POOL].difference() is None
    assert replace(found[POOL], code="x").difference() == "was made with other code"


def test_other_parents_are_noticed(built, call):
    built.edit(teacher__seed=5).build(call("teacher"))
    _, found = read_expected(built.root)
    assert found[TEACHER].difference() is None
    assert found[POOL].difference() == "was made with other parents"


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_result_is_none(built, damage):
    file = built.root / TEACHER / "model.safetensors"
    if damage == "remove":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    _, found = read_expected(built.root)
    assert str(file) in str(found[TEACHER].difference())


def test_a_result_that_is_not_there_is_none(fresh):
    _, found = read_expected(fresh.root)
    assert "there is no teacher here" in str(found[TEACHER].difference())


def test_an_adopted_teacher_is_made_of_the_finished_one(built, call):
    """Another one in its place is noticed; the one that was adopted is the result."""
    finished = built.root / "elsewhere"
    shutil.copytree(built.root / TEACHER, finished / "wrn-10-1")
    built.edit(teacher__artifact="elsewhere/{teacher}").build(call("teacher"))
    _, found = read_expected(built.root)
    assert found[TEACHER].parents == {"adopted": finished / "wrn-10-1"}
    assert found[TEACHER].difference() is None
    shutil.rmtree(finished)
    with new_artifact(finished / "wrn-10-1", kind="teacher", card={"facts": {}}):
        pass
    assert found[TEACHER].difference() == "was made with other parents"
