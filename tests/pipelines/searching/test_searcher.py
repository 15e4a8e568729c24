"""Suggestions: seeded by number, distinct, going on from records; ASHA that knows old curves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.searching.results import TrialRecord, trial_id_of
from pipelines.searching.searcher import DistinctSearcher, make_scheduler
from pipelines.searching.space import read_space

from .test_results import record_of, search_of

SPACE = read_space(
    None, ["a.x=loguniform(0.01, 10)", "a.n=int(1, 100)", "a.c=choice(N, 0.5, null)"]
)


def config_of(suggestion):
    assert set(suggestion) == {"number", "values", "suggested"}
    return suggestion["number"], suggestion["values"]


def record(suggestion, status, score):
    found = TrialRecord(
        search="s",
        trial_id=trial_id_of(suggestion["values"]),
        number=suggestion["number"],
        values=suggestion["values"],
        suggested=suggestion["suggested"],
        criterion="agreement",
        metric="agreement_backbone",
        status=status,
    )
    if score is not None:
        found.add_point(1, score)
    return found


def run(count, searcher, scores=lambda number: float(number % 7)):
    """Ask for trials one after another, each told its score."""
    asked = []
    for index in range(count):
        suggestion = searcher.suggest(f"t{index}")
        asked.append(suggestion)
        searcher.on_trial_complete(f"t{index}", {"score": scores(suggestion["number"])})
    return asked


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_search_that_was_killed_goes_on_as_it_would_have(kind):
    """Past the tenth trial TPE looks at what is known: it must be the same after a restart."""
    search = search_of(searcher=kind)
    whole = run(16, DistinctSearcher(search, SPACE, []))
    assert len({trial_id_of(s["values"]) for s in whole}) == 16
    known = [record(s, "complete", float(s["number"] % 7)) for s in whole[:12]]
    assert run(4, DistinctSearcher(search, SPACE, known)) == whole[12:]
    other = run(3, DistinctSearcher(search_of(searcher=kind, seed=1), SPACE, []))
    assert other != whole[:3]


def test_what_was_interrupted_comes_first_and_is_told():
    search = search_of()
    whole = run(3, DistinctSearcher(search, SPACE, []))
    known = [
        record(whole[0], "complete", 1.0),
        record(whole[1], "running", 0.5),
        record(whole[2], "failed", None),
    ]
    again = DistinctSearcher(search, SPACE, known)
    assert config_of(again.suggest("x")) == config_of(whole[1])
    again.on_trial_complete("x", {"score": 3.0})
    assert again.suggest("y")["number"] == 3
    again.on_trial_complete("y", error=True)
    assert again.suggest("z")["number"] == 4


def test_no_values_twice_until_the_space_is_exhausted():
    space = read_space(None, ["a.c=choice(x, y, z)"])
    searcher = DistinctSearcher(search_of(searcher="random"), space, [])
    found = [searcher.suggest(str(i)) for i in range(4)]
    assert sorted(s["values"]["a.c"] for s in found[:3]) == ["x", "y", "z"]
    assert found[3] == DistinctSearcher.FINISHED
    values = {"a.c": "y"}
    known = [record({"number": 0, "values": values, "suggested": values}, "stopped", 1.0)]
    rest = DistinctSearcher(search_of(searcher="random"), space, known)
    assert {rest.suggest(str(i))["values"]["a.c"] for i in range(2)} == {"x", "z"}


def test_values_are_rounded_and_optuna_knows_the_raw_ones():
    suggestion = DistinctSearcher(search_of(), SPACE, []).suggest("t")
    drawn, used = suggestion["suggested"]["a.x"], suggestion["values"]["a.x"]
    assert used == float(f"{drawn:.4g}") and used != drawn


def test_asha_compares_with_trials_of_an_earlier_driver():
    old = [record_of(number, 80.0 + number) for number in range(4)]
    for each in old:
        each.curve = [(step, 80.0) for step in (10, 20, 30, 40)]
    new = SimpleNamespace(trial_id="new")

    def decision(records, score):
        scheduler = make_scheduler(search_of(), records)
        scheduler.on_trial_add(None, new)
        return scheduler.on_trial_result(None, new, {"training_iteration": 1, "score": score})

    assert decision(old, 50.0) == "STOP"
    assert decision(old, 90.0) == "CONTINUE"
    assert decision([], 50.0) == "CONTINUE"
    never = make_scheduler(search_of(scheduler="none"), old)
    never.on_trial_add(None, new)
    result = {"training_iteration": 1, "score": 0.0}
    assert never.on_trial_result(None, new, result) == "CONTINUE"
