"""`kdci promote`: which trial, what is written, what is refused, what is warned of."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from ruamel.yaml import YAML

from kdci.config.params_file import load_params
from kdci.errors import CombinedUserError, UserError
from kdci.store.layout import Layout
from pipelines.cli import run
from pipelines.searching.driver import prepare
from pipelines.searching.options import SearchOptions
from pipelines.searching.plan import plan_trials
from pipelines.searching.results import TrialRecord, trial_id_of, write_trial
from pipelines.serving.promote import find_trial, plan_promotion, promote

KEYS = ("compensation.scale=loguniform(0.1, 10)", "compensation.learning_rate=choice(null, 0.5)")


@pytest.fixture
def root(smoke_project, tmp_path):
    """The built project; that DVC has no record of it is of no matter here."""
    root = tmp_path / "project"
    shutil.copytree(smoke_project.root, root)
    return root


@pytest.fixture
def layout(root):
    return Layout(root, "digits-smoke")


@pytest.fixture
def search(root, layout, monkeypatch):
    """A search as it was begun, with no trial yet."""
    import pipelines.searching.driver as driver

    def of_built(graph, search, dag):
        return plan_trials(graph, search, replace(dag, changes={}))

    monkeypatch.setattr(driver, "plan_trials", of_built)
    params = load_params(root / "params.yaml")
    return prepare(root, params, SearchOptions(keys=KEYS, name="s"))[1]


def student_of(search):
    return search.stages[-1].name


def add(layout, search, number, score, status="complete", **values):
    found = {"compensation.scale": 0.5 + number, "compensation.learning_rate": None, **values}
    record = TrialRecord(
        search=search.name,
        trial_id=trial_id_of(found),
        number=number,
        values=found,
        suggested=found,
        criterion=search.criterion,
        metric=search.metric,
        status=status,
        code=dict(search.code),
        threads=1,
        finished=1.0,
    )
    record.add_point(12, score)
    write_trial(layout, record)
    return record


def test_a_search_stands_for_its_best_trial(layout, search):
    low, high = add(layout, search, 0, 50.0), add(layout, search, 1, 60.0)
    add(layout, search, 2, 90.0, "stopped")
    assert find_trial(layout, "s") == high
    assert find_trial(layout, low.name) == find_trial(layout, low.trial_id) == low
    for name in ("x", "s/x", f"x/{low.trial_id}"):
        with pytest.raises(UserError, match="no search or trial"):
            find_trial(layout, name)


@pytest.mark.slow
@pytest.mark.parametrize("status", ["stopped", "failed", "running"])
def test_only_complete_trials_are_promoted(root, layout, search, status):
    record = add(layout, search, 0, 90.0, status)
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(UserError, match="early|failed|not finished") as caught:
        promote(root, record.name)
    assert caught.value.subject == record.name
    with pytest.raises(UserError, match="no complete trial"):
        promote(root, "s")
    assert (root / "params.yaml").read_bytes() == before


def test_values_of_searched_keys_are_written_and_nothing_else(root, layout, search):
    add(layout, search, 0, 60.0, **{"compensation.learning_rate": 0.5})
    file = root / "params.yaml"
    before = file.read_text()
    assert promote(root, "s", dry_run=True).changes == {
        "compensation.scale": ("shift", 0.5),
        "compensation.learning_rate": (None, 0.5),
    }
    assert file.read_text() == before
    promotion = promote(root, "s")
    expected = YAML(typ="safe", pure=True).load(before)
    expected["compensation"] |= {"scale": 0.5, "learning_rate": 0.5}
    assert YAML(typ="safe", pure=True).load(file.read_text()) == expected
    for old, new in zip(before.splitlines(), file.read_text().splitlines(), strict=True):
        assert old.partition("#")[2] == new.partition("#")[2]
    assert "distill@wrn-10-1-wrn-10-1-fast-kdci-0-0" in promotion.stages
    assert "report" in promotion.stages
    assert promotion.warnings == []
    assert "60.0 of wrn-10-1/wrn-10-1/fast/kdci/pool0-seed0" in promotion.promise
    again = promote(root, "s")
    assert again.changes == {} and file.read_text() == promotion.text


def test_numbers_are_written_so_that_they_are_read_again(root, layout, search):
    for number, value in enumerate((1e-05, 0.1 + 0.2, 123456789.0)):
        record = add(layout, search, number, 60.0, **{"compensation.scale": value})
        promote(root, record.name)
        assert load_params(root / "params.yaml").compensation.scale == value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [("recipes.fast.num_epochs", 3), ("compensation.fusion", "linear"), ("teacher.seed", 4)],
)
def test_params_that_the_search_took_as_given_must_be_the_same(root, layout, search, key, value):
    from pipelines.params.edit import with_values

    add(layout, search, 0, 60.0)
    file = root / "params.yaml"
    edited = with_values(file.read_text(), {key: value})
    file.write_text(edited)
    with pytest.raises(CombinedUserError) as caught:
        promote(root, "s")
    (problem,) = caught.value.problems
    assert problem.subject == key and f"is {value} now" in problem.what
    assert file.read_text() == edited


@pytest.mark.slow
def test_params_of_other_students_may_have_changed(root, layout, search):
    from pipelines.params.edit import with_values

    add(layout, search, 0, 60.0)
    file = root / "params.yaml"
    changes = {"methods.dfnd.num_selected": 60, "grid.methods": ["fast"], "compensation.scale": 9.0}
    file.write_text(with_values(file.read_text(), changes))
    assert promote(root, "s").changes == {"compensation.scale": (9.0, 0.5)}


def test_what_the_number_was_made_with_and_is_different_now_is_told(root, layout, search):
    from pipelines.params.edit import with_values

    record = add(layout, search, 0, 60.0)
    changed = {**record.code, student_of(search): "other"}
    write_trial(layout, record.model_copy(update={"code": changed}))
    card = next(layout.artifacts.glob("pools/wrn-10-1/fast/pool0/card.json"))
    card.write_text(card.read_text() + " ")
    assert len(plan_promotion(layout, "s").warnings) == 1  # the card says the same
    shutil.rmtree(card.parent)
    file = root / "params.yaml"
    file.write_text(with_values(file.read_text(), {"grid.seeds": [5]}))
    code, pool, grid = plan_promotion(layout, "s").warnings
    assert "code has changed" in code
    assert "pools/wrn-10-1/fast/pool0 has changed" in pool
    assert "grid does not ask for" in grid


def test_on_the_command_line(root, layout, search, capsys):
    record = add(layout, search, 0, 62.5)
    assert run(["--root", str(root), "promote", "s", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"trial {record.name}" in said and "would write compensation.scale: shift -> 0.5" in said
    assert "promised: agreement_backbone 62.5" in said
    assert run(["--root", str(root), "promote", "t"]) == 2
    assert capsys.readouterr().err.startswith("kdci: error: t: is no search or trial")
    assert json.loads(json.dumps(record.asdict()))["name"] == record.name
