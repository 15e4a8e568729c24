"""The files of a search: what goes in comes out, and the table says it."""

from __future__ import annotations

import json

import pytest

from kdci.errors import IntegrityError, UserError
from kdci.store.layout import Layout
from pipelines.searching.results import (
    Search,
    StageCall,
    TrialRecord,
    best_of,
    read_search,
    read_trials,
    searches,
    table,
    trial_folder,
    trial_id_of,
    write_results,
    write_search,
    write_trial,
)

CELL = {
    "teacher": "wrn-10-1",
    "student": "wrn-10-1",
    "method": "fast",
    "variant": "kdci",
    "pool_seed": 0,
    "seed": 0,
}


def search_of(**changes):
    call = StageCall(name="distill@x", stage="distill", cell="x", artifact="a/b", student=CELL)
    values = {
        "name": "s",
        "preset": "digits-smoke",
        **{key: CELL[key] for key in ("teacher", "student", "method", "variant")},
        "pool_seeds": (0,),
        "seeds": (0,),
        "criterion": "agreement",
        "metric": "agreement_backbone",
        "space": {"compensation.scale": "uniform(1, 2)"},
        "scheduler": "asha",
        "searcher": "tpe",
        "seed": 0,
        "grace": 1,
        "reduction": 2,
        "num_points": 4,
        "given": {"recipes.fast.num_epochs": 2},
        "upstream": {},
        "code": {"distill@x": "c"},
        "stages": (call,),
    }
    return Search(**{**values, **changes})


def record_of(number, score, status="complete", **changes):
    values = {"compensation.scale": 1 + number / 10}
    record = TrialRecord(
        search="s",
        trial_id=trial_id_of(values),
        number=number,
        values=values,
        suggested=values,
        criterion="agreement",
        metric="agreement_backbone",
        status=status,
        num_steps=40,
        **changes,
    )
    if score is not None:
        record.add_point(20, 1.0)
        record.add_point(40 if status == "complete" else 20, score)
    return record


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path, "digits-smoke")


def test_what_is_written_is_read(layout):
    search, records = search_of(), [record_of(1, 50.0), record_of(0, 60.0)]
    write_search(layout, search)
    for record in records:
        write_trial(layout, record)
    assert searches(layout) == ["s"]
    assert read_search(layout, "s") == search
    assert read_trials(layout, "s") == sorted(records, key=lambda record: record.number)
    assert read_search(layout, "s").cells[0].seed == 0


def test_a_search_of_before_cells_had_names_is_read(layout):
    """Its trials may be promoted; it is another search than any that is begun now."""
    search = search_of()
    old = {
        **{"name": "distill_kdci@x", "dvc_name": "distill_kdci_pair@pair0", "module": "distill"},
        **{"arguments": ["--seed", "0"], "artifact": "a/b", "cell": CELL},
    }
    values = {**search.model_dump(), "code": "f" * 64, "stages": [old]}
    found = Search.model_validate(values)
    assert found.cells == search.cells and found.identity != search.identity
    assert found.stages[0].name == "distill_kdci_pair@pair0"
    values = {**record_of(0, 60.0).asdict(), "code": "f" * 64, "of a later version": 1}
    assert TrialRecord.model_validate(values).score == 60.0


def test_identity_is_all_but_the_name():
    assert search_of(name="x").identity == search_of().identity
    for change in ({"seed": 1}, {"given": {}}, {"upstream": {"a": "b"}}, {"code": {}}):
        assert search_of(**change).identity != search_of().identity


def test_what_is_not_there_and_what_is_damaged(layout):
    with pytest.raises(UserError):
        read_search(layout, "s")
    record = record_of(0, 1.0)
    write_trial(layout, record)
    (trial_folder(layout, "s", record.trial_id) / "trial.json").write_text("{")
    with pytest.raises(IntegrityError):
        read_trials(layout, "s")


def test_best_is_the_earliest_complete_one_of_the_highest_score():
    stopped, failed = record_of(0, 90.0, "stopped"), record_of(4, None, "failed", error="why")
    records = [stopped, record_of(3, 70.0), record_of(1, 70.0), record_of(2, 10.0), failed]
    best = best_of(records)
    assert best is not None and best.number == 1
    assert best_of([stopped, failed]) is None


def test_a_repeated_step_replaces_its_score():
    record = record_of(0, 60.0)
    record.add_point(20, 30.0)  # a trial whose worker died reports again what it knew
    assert record.curve == [(20, 30.0), (40, 60.0)]
    assert (record.steps, record.score) == (40, 60.0)


def test_table_and_results(layout):
    search = search_of()
    records = [record_of(0, 55.5, "stopped"), record_of(1, 70.25), record_of(2, None, "failed")]
    lines = table(search, records).splitlines()
    assert lines[0].split() == [
        "trial",
        "compensation.scale",
        "agreement_backbone",
        "steps",
        "status",
    ]
    assert lines[1].split()[1:] == ["1.1", "70.25", "40/40", "complete"]
    assert lines[2].split()[1:] == ["1", "55.50", "20/40", "stopped"]
    assert lines[3].split()[1:] == ["1.2", "-", "0/40", "failed"]
    found = json.loads(write_results(layout, search, records).read_text())
    assert found["best"] == records[1].name
    assert [row["status"] for row in found["trials"]] == ["complete", "stopped", "failed"]
