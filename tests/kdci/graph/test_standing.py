"""What may be taken for a result: made of the current params, parents and code, and whole."""

import json
import shutil

import pytest

from kdci.graph.cells import sources_of
from kdci.graph.standing import card_at, difference, differences, is_in_place
from kdci.store.artifacts import new_artifact
from tests.conftest import Call

TEACHER = "teacher@wrn-10-1"
POOL = "substitute@wrn-10-1-fast-0"


def told(project, name):
    return differences(project.root, [name])[name]


def test_results_of_the_current_params_are_what_is_asked_for(built):
    nodes = built.graph.makers
    assert {node.kind for node in nodes} == {
        *("teacher", "pool", "dictionary", "student", "evaluation"),
    }
    names = [node.name for node in nodes]
    assert differences(built.root, names) == dict.fromkeys(names)


def test_the_report_is_no_artifact(built):
    assert {*built.graph.nodes} - {node.name for node in built.graph.makers} == {"report"}


def test_code_is_that_of_the_project_folder(built):
    (built.root / "stages").mkdir()
    (built.root / "stages/teacher.py").write_text("OF_ITS_OWN = True\n")
    assert told(built, TEACHER) == "was made with other code"


def test_other_params_or_code_are_noticed(built):
    built.edit(teacher__seed=5)
    assert told(built, TEACHER) == "was made with other params"
    assert told(built, POOL) is None
    graph = built.graph
    assert difference(graph, graph.nodes[POOL], "x") == "was made with other code"


def test_a_card_that_states_a_whole_block_states_its_values(built, call):
    """As those of before students depended on the keys that their arm reads."""
    cell = "wrn-10-1-wrn-10-1-fast-logit_adjusted-0-0"
    built.edit(grid__arms=["logit_adjusted"]).build(Call("distill", cell))
    node = built.graph.node("distill", cell)
    file = node.artifact / "card.json"
    card = json.loads(file.read_text())
    tau = card["params"].pop("intervention.tau")
    for stated, in_place in ({"tau": tau}, True), ({"tau": 7.0}, False), ({}, False), (None, False):
        card["params"]["intervention"] = stated

        def read(path, kind):
            return card if path == node.artifact else card_at(path, kind)

        assert is_in_place(built.graph, node, read) == in_place


def test_other_parents_are_noticed(built, call):
    built.edit(teacher__seed=5).build(call("teacher"))
    assert told(built, TEACHER) is None
    assert told(built, POOL) == "was made with other parents"


def test_what_the_params_do_not_ask_for_any_more(built):
    built.edit(grid__methods=["dfnd"])
    assert told(built, POOL) == "the params no longer ask for it"


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_result_is_none(built, call, damage):
    file = built.artifact(call("teacher")) / "model.safetensors"
    if damage == "remove":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    assert str(file) in str(told(built, TEACHER))


def test_a_result_that_is_not_there_is_none(fresh):
    assert "there is no teacher here" in str(told(fresh, TEACHER))


def test_an_adopted_teacher_is_made_of_the_finished_one(built, call):
    """Another one in its place is noticed; the one that was adopted is the result."""
    finished = built.root / "elsewhere/wrn-10-1"
    shutil.copytree(built.artifact(call("teacher")), finished)
    built.edit(teacher__artifact="elsewhere/{teacher}").build(call("teacher"))
    assert {r: p.path for r, p in built.node(call("teacher")).parents.items()} == {
        "adopted": finished
    }
    assert told(built, TEACHER) is None
    shutil.rmtree(finished)
    with new_artifact(finished, kind="teacher", card={"facts": {}}):
        pass
    assert told(built, TEACHER) == "was made with other parents"


def test_a_result_of_another_parent_is_not_in_place(built, call):
    graph = built.graph
    pool = graph.nodes[POOL]
    assert is_in_place(graph, pool)
    teacher = built.artifact(call("teacher"))
    teacher.rename(teacher.with_name("away"))
    assert is_in_place(graph, pool), "a parent that is not there may be checked out again"
    with new_artifact(teacher, kind="teacher", card={"facts": {}}):
        pass
    assert not is_in_place(graph, pool)


def test_what_was_read_of_the_code_is_kept(built):
    graph = built.graph
    sources = sources_of(graph)
    found = sources.fingerprint(graph.nodes[TEACHER].code)
    sources.remember()
    assert (graph.layout.work / "code.json").is_file()
    assert sources_of(graph).fingerprint(graph.nodes[TEACHER].code) == found
