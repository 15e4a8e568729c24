"""Trials run what a searched key reaches, and take the rest from the workspace."""

from __future__ import annotations

import json
import re

import pytest

from kdci.errors import CombinedUserError, UserError
from kdci.graph.build import graph_of
from kdci.store.layout import Cell
from pipelines.graph.dag import Change, Dag, DagStage
from pipelines.params.edit import checked, with_values
from pipelines.searching.options import SearchOptions
from pipelines.searching.plan import (
    FIXED,
    begin_search,
    fingerprints,
    grid_of,
    leaves,
    plan_trials,
)

KEY = "compensation.scale"
MORE = {
    "grid__arms": ["logit_adjusted", "kdci_stratified"],
    "grid__others": ["wrn-16-1"],
    "grid__shifts": ["tail"],
    "grid__shift_arms": ["vanilla", "kdci"],
    "grid__seeds": [0, 1],
    "compensation__fusion": "residual",
    "other": {"data": {"name": "digits5", "path": None, "test": "test"}},
    "shift": {"base": "fast", "num_images": 40, "temperature": 4.0},
    "shifts": {"tail": {"imbalance": 4.0}},
}


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Artifacts that a plan takes, of which nothing but the contents is looked at."""
    contents = lambda graph, places: dict.fromkeys(places, "content")  # noqa: E731
    monkeypatch.setattr("pipelines.searching.plan.contents", contents)


def dag_of(project, changed=()):
    """Return DVC's graph as far as a plan looks at it."""
    graph = project.graph
    stages = {}
    for name, node in graph.nodes.items():
        upstream = [graph.by_artifact.get(parent.path) for parent in node.parents.values()]
        stages[name] = DagStage(name, "", tuple(maker.name for maker in upstream if maker))
    return Dag(stages, {name: (Change("dep", "x", "modified"),) for name in changed})


def plan(project, keys, *, changed=(), **chosen):
    search = begin(project, keys, **chosen)
    text = (project.root / "params.yaml").read_text()
    reduced = checked(with_values(text, grid_of(search, project.params)))
    graph = graph_of(reduced, project.root)
    return plan_trials(graph, search, dag_of(project, changed))


def begin(project, keys=(), **chosen):
    space = dict.fromkeys(keys, "uniform(0, 1)")
    return begin_search(project.params, SearchOptions(**chosen), space)


def stages_of(found):
    return [call.stage for call in found.stages]


@pytest.mark.parametrize(
    ("key", "run", "taken"),
    [
        ("compensation.scale", ["distill"], ["teachers", "pools", "dictionaries"]),
        ("recipes.fast.learning_rate", ["distill"], ["teachers", "pools", "dictionaries"]),
        ("dictionary.num_prototypes", ["dictionary", "distill"], ["teachers", "pools"]),
        ("methods.fast.bn_weight", ["substitute", "dictionary", "distill"], ["teachers"]),
    ],
)
def test_only_what_the_key_reaches_is_run(fresh, key, run, taken):
    found = plan(fresh, [key])
    assert stages_of(found) == run
    assert [place.split("/")[2] for place in found.upstream] == taken
    assert key not in found.given and "recipes.fast.num_epochs" in found.given
    last = found.stages[-1]
    assert last.student["variant"] == "kdci"
    assert last.cell == "wrn-10-1-wrn-10-1-fast-kdci-0-0" and last.name == f"distill@{last.cell}"


def test_replicates_are_students_of_one_trial(fresh):
    found = plan(fresh.edit(**MORE), [KEY], seeds=[0, 1])
    assert [call.student["seed"] for call in found.stages] == [0, 1]
    pools = plan(fresh.edit(grid__pool_seeds=[2, 1]), [KEY], seeds=[1, 0], pool_seeds=[2, 1])
    assert {Cell(**call.student) for call in pools.stages} == {*pools.cells}
    assert len(pools.cells) == 4


def test_a_known_shift_and_the_other_models_dictionary(fresh):
    fresh.edit(**MORE)
    shifted = plan(fresh, ["shifts.tail.imbalance"], method="tail")
    assert stages_of(shifted) == ["shift", "dictionary", "distill"]
    assert [place.split("/", 2)[2] for place in shifted.upstream] == [
        "teachers/wrn-10-1",
        "pools/wrn-10-1/fast/pool0",
    ]
    other = plan(fresh, ["dictionary.num_prototypes"], variant="kdci_other")
    assert [call.name for call in other.stages] == [
        "dictionary@other-wrn-16-1-fast-0",
        "distill@wrn-10-1-wrn-10-1-fast-kdci_other-0-0",
    ]
    assert "artifacts/digits-smoke/other/pools/wrn-16-1/fast/pool0" in other.upstream


@pytest.mark.parametrize(
    ("key", "chosen", "said"),
    [
        ("runtime.threads", {}, "the same for all"),
        ("pool.holdout", {}, "held out"),
        ("distill.num_snapshots", {}, "scored"),
        ("teacher.num_epochs", {}, "given"),
        ("evaluate.batch_size", {}, "changes nothing"),
        ("methods.dfnd.temperature", {}, "changes nothing"),
        ("compensation.scale", {"variant": "vanilla"}, "changes nothing"),
        ("compensation.scale", {"variant": "kdci_stratified"}, "set by the arm"),
        ("intervention.tau", {}, "changes nothing"),
        ("dictionary.artifact", {}, "place"),
    ],
)
def test_keys_that_are_refused(fresh, key, chosen, said):
    fresh.edit(grid__arms=["kdci_stratified"])
    with pytest.raises(CombinedUserError, match=said) as caught:
        plan(fresh, [key], **chosen)
    assert caught.value.subject == key


def test_an_adopted_dictionary_is_linked_where_trials_adopt_it(fresh):
    fresh.edit(dictionary__artifact="elsewhere/dictionary")
    assert plan(fresh, ["compensation.hidden_dim"]).links == ()
    assert plan(fresh, ["methods.fast.bn_weight"]).links == ("elsewhere/dictionary",)
    with pytest.raises(CombinedUserError, match="adopted"):
        plan(fresh, ["dictionary.num_prototypes"])


def test_what_trials_share_must_be_up_to_date(fresh):
    changed = ["teacher@wrn-10-1"]
    with pytest.raises(CombinedUserError, match="not up to date") as caught:
        plan(fresh, ["compensation.scale"], changed=changed)
    assert "kdci run teacher@wrn-10-1 substitute@wrn-10-1-fast-0" in str(caught.value)
    later = ["dictionary@wrn-10-1-fast-0", "evaluate@wrn-10-1-wrn-10-1-fast"]
    plan(fresh, ["dictionary.num_prototypes"], changed=later)
    with pytest.raises(UserError, match="no stage of params.yaml makes it"):
        plan(fresh, ["compensation.scale"], pool_seeds=[7])


def test_whose_hyperparameters(fresh):
    fresh.edit(grid__seeds=[3, 4])
    subject = begin(fresh)
    assert (subject.method, subject.variant, subject.seeds) == ("fast", "kdci", (3,))
    for chosen in (
        {"method": "cmi"},
        {"variant": "kdci_other"},
        {"teacher": "vgg-11"},
        {"seeds": [1, 1]},
        {"seeds": [-1]},
    ):
        with pytest.raises(CombinedUserError):
            begin(fresh, **chosen)


def test_the_code_of_a_score_is_that_of_its_stages_and_of_the_evaluation(built):
    found = plan(built, ["methods.fast.bn_weight"])
    code = fingerprints(built.graph, found.stages)
    assert [*code] == [*(call.name for call in found.stages), "evaluate@wrn-10-1-wrn-10-1-fast"]
    for name, fingerprint in code.items():
        card = json.loads((built.graph.nodes[name].artifact / "card.json").read_text())
        assert card["code"]["hash"] == fingerprint


def test_leaves_are_dotted(fresh):
    found = leaves(fresh.params, ["compensation", "data.name"])
    assert found["compensation.lambda"] == "learned" and found["data.name"] == "digits"
    assert all(not isinstance(value, dict) for value in found.values())


@pytest.mark.parametrize(("key", "said"), [("budget", "same for all"), ("backbone.stem", "given")])
def test_steps_and_first_layers_are_not_searched(fresh, key, said):
    with pytest.raises(CombinedUserError, match=said):
        plan(fresh, [key])


def test_no_trial_makes_or_adopts_a_teacher(fresh):
    """So no trial's folder has to reach `teacher.artifact`."""
    assert {key for node in fresh.graph.of_stage("teacher") for key in node.blocks} <= {*FIXED}
    fresh.edit(teacher__artifact="elsewhere/{teacher}")
    found = plan(fresh, ["methods.fast.bn_weight"])
    assert stages_of(found) == ["substitute", "dictionary", "distill"]
    assert found.upstream == {"artifacts/digits-smoke/teachers/wrn-10-1": "content"}


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (
            "methods.fast.bn_weight",
            "by_teacher.wrn-10-1 itself.*methods.fast.by_teacher.wrn-10-1.bn",
        ),
        ("methods.fast.temperature", "by_student.wrn-10-1 itself.*by_student.wrn-10-1.temperature"),
        ("methods.fast.by_teacher.wrn-10-1.temperature", "by_student.wrn-10-1 itself"),
        ("methods.fast.by_teacher.vgg-11.bn_weight", "changes nothing of wrn-10-1 -> wrn-10-1"),
    ],
)
def test_a_value_that_another_one_overrides_is_refused(fresh, key, said):
    fresh.edit(**OVERRIDES)
    with pytest.raises(CombinedUserError) as caught:
        plan(fresh, [key])
    assert caught.value.subject == key
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize(
    "key",
    [
        "methods.fast.by_teacher.wrn-10-1.bn_weight",
        "methods.fast.by_student.wrn-10-1.temperature",
        "methods.fast.adversarial_weight",
    ],
)
def test_the_value_that_holds_is_searched(fresh, key):
    assert stages_of(plan(fresh.edit(**OVERRIDES), [key]))[-1] == "distill"


OVERRIDES = {
    "methods__fast__by_teacher": {
        "wrn-10-1": {"bn_weight": 2.0, "temperature": 2.0},
        "vgg-11": {"bn_weight": 1.0},
    },
    "methods__fast__by_student": {"wrn-10-1": {"temperature": 8.0}},
}
