"""Stages run once each, after what they are made from, so many at a time, whoever asks."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.graph.dag import Change, Dag, DagStage
from pipelines.running.scheduler import Scheduler
from pipelines.running.stage_process import Outcome, State
from tests.pipelines.running._workshop import (
    DIAMOND,
    Job,
    Workshop,
    dag_of,
    in_thread,
    join,
    run_all,
    states,
    until,
)

# -- running everything ---------------------------------------------------------------------------


def test_each_stage_runs_once_after_those_it_is_made_from() -> None:
    shop, dag = Workshop(seconds=0.01), dag_of(DIAMOND)
    told: list[str] = []
    scheduler = Scheduler(
        dag, shop.start_job, limit=3, on_outcome=lambda outcome: told.append(outcome.stage)
    )
    run_all(scheduler)
    shop.require_order(dag)
    assert sorted(shop.ran) == sorted(told) == sorted(DIAMOND)
    assert states(scheduler) == dict.fromkeys(DIAMOND, State.completed)
    assert list(scheduler.outcomes) == list(DIAMOND)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_as_many_as_the_limit_are_at_work_and_no_more(limit: int) -> None:
    names = ("a", "b", "c", "d", "e")
    shop = Workshop(held=names)
    scheduler = Scheduler(dag_of(dict.fromkeys(names, ())), shop.start_job, limit=limit)
    thread = in_thread(scheduler.run_all)
    shop.await_begin(*names[:limit])
    time.sleep(0.05)
    assert shop.ran == list(names[:limit])
    shop.let_go()
    join(thread)
    assert shop.most_at_work == limit


def test_what_does_not_differ_is_cached_without_a_job_even_where_the_limit_is_reached() -> None:
    dag = dag_of({"long": (), "old": (), "older": ("old",)}, changed=["long"])
    shop = Workshop(held=("long",))
    scheduler = Scheduler(dag, shop.start_job, limit=1)
    thread = in_thread(scheduler.run_all)
    until(lambda: set(scheduler.outcomes) == {"old", "older"})
    assert states(scheduler) == {"old": State.cached, "older": State.cached}
    shop.let_go()
    join(thread)
    assert shop.ran == ["long"]


def test_what_follows_is_not_asked_where_all_its_parents_came_out_cached() -> None:
    """DVC finds a changed stage unchanged after all; what follows from it need not be asked."""
    dag = dag_of(DIAMOND, changed=["pool", "vanilla"])
    shop = Workshop(states={"pool": State.cached})
    scheduler = Scheduler(dag, shop.start_job, limit=2)
    run_all(scheduler)
    # vanilla differs itself and came out anew; so the report is asked, and KDCI's stages are not.
    assert sorted(shop.ran) == ["pool", "report", "vanilla"]
    assert states(scheduler)["dictionary"] is State.cached
    assert states(scheduler)["kdci"] is State.cached


@pytest.mark.parametrize("state", [State.completed, State.restored])
def test_what_follows_is_asked_where_a_parent_came_out_anew(state: State) -> None:
    dag = dag_of(DIAMOND, changed=["dictionary"])
    shop = Workshop(states={"dictionary": state})
    scheduler = Scheduler(dag, shop.start_job, limit=2)
    run_all(scheduler)
    assert shop.ran == ["dictionary", "kdci", "report"]


def test_what_needs_a_failed_stage_is_not_run_and_the_rest_is() -> None:
    shop, dag = Workshop(states={"dictionary": State.failed}), dag_of(DIAMOND)
    scheduler = Scheduler(dag, shop.start_job, limit=1)
    run_all(scheduler)
    assert sorted(shop.ran) == ["dictionary", "pool", "teacher", "vanilla"]
    outcomes = scheduler.outcomes
    assert outcomes["vanilla"].state is State.completed
    for name in ("kdci", "report"):
        assert outcomes[name].state is State.not_run
        assert outcomes[name].message == "dictionary has no result"


def test_a_job_that_raises_is_a_failed_stage() -> None:
    class Broken(Job):
        def run(self) -> Outcome:
            raise OSError("no such file: python")

    scheduler = Scheduler(
        dag_of({"a": (), "b": ("a",)}), lambda name, hear: Broken(Workshop(), name, hear), limit=1
    )
    run_all(scheduler)
    assert scheduler.outcomes["a"] == Outcome(
        "a", State.failed, "could not be run: no such file: python", exit_code=1
    )
    assert scheduler.outcomes["b"].state is State.not_run


def test_listeners_that_raise_harm_nothing() -> None:
    def closed(*said: object) -> None:
        raise BrokenPipeError(str(said))

    shop = Workshop(lines=2)
    scheduler = Scheduler(
        dag_of(DIAMOND), shop.start_job, limit=2, on_line=closed, on_outcome=closed
    )
    run_all(scheduler)
    assert states(scheduler) == dict.fromkeys(DIAMOND, State.completed)


def test_lines_are_heard_under_their_stage_in_order() -> None:
    heard: list[tuple[str, str]] = []
    shop = Workshop(lines=3)
    scheduler = Scheduler(
        dag_of({"a": (), "b": ("a",)}),
        shop.start_job,
        limit=1,
        on_line=lambda stage, line: heard.append((stage, line)),
    )
    run_all(scheduler)
    assert heard == [(stage, f"line {i}") for stage in "ab" for i in range(3)]


# -- following ------------------------------------------------------------------------------------


def test_who_follows_late_hears_all_lines_and_the_outcome_once() -> None:
    class Talker(Job):
        def run(self) -> Outcome:
            for number in range(3):
                self.hear(f"early {number}")
            outcome = super().run()
            for number in range(3):
                self.hear(f"late {number}")
            return outcome

    shop = Workshop(held=("a",))
    told: list[Outcome] = []
    scheduler = Scheduler(
        dag_of({"a": ()}),
        lambda name, hear: Talker(shop, name, hear),
        limit=1,
        on_outcome=told.append,
    )
    scheduler.begin("a")
    shop.await_begin("a")  # its first lines are out
    heard: dict[int, list[str]] = {0: [], 1: []}
    outcomes: list[Outcome] = []
    threads = [
        in_thread(lambda lines=lines: outcomes.append(scheduler.follow("a", lines.append)))
        for lines in heard.values()
    ]
    until(lambda: all(len(lines) == 3 for lines in heard.values()))
    shop.let_go()
    join(*threads)
    after: list[str] = []
    outcomes.append(scheduler.follow("a", after.append))  # it is long over
    everything = [f"{when} {i}" for when in ("early", "late") for i in range(3)]
    assert heard[0] == heard[1] == after == everything
    assert outcomes == [Outcome("a", State.completed)] * 3
    assert told == [Outcome("a", State.completed)]
    assert shop.ran == ["a"]


def test_following_starts_what_nobody_started() -> None:
    shop = Workshop(lines=1)
    scheduler = Scheduler(dag_of({"a": ()}), shop.start_job, limit=1)
    heard: list[str] = []
    assert scheduler.follow("a", heard.append).state is State.completed
    assert heard == ["line 0"]


def test_following_what_can_not_run_returns_at_once() -> None:
    shop = Workshop(states={"a": State.failed})
    scheduler = Scheduler(dag_of({"a": (), "b": ("a",)}), shop.start_job, limit=1)
    assert scheduler.follow("a", lambda line: None).state is State.failed
    assert scheduler.follow("b", lambda line: None).state is State.not_run
    assert shop.ran == ["a"]


# -- nobody starts them in time -------------------------------------------------------------------


def test_watching_starts_what_is_overdue_and_then_waits_no_more() -> None:
    shop, dag = Workshop(), dag_of({"a": (), "b": ("a",), "c": ("b",), "d": ("c",)})
    scheduler = Scheduler(dag, shop.start_job, limit=1)
    overdue: list[str] = []
    began = time.monotonic()
    join(in_thread(lambda: scheduler.watch(0.5, overdue.append)))
    seconds = time.monotonic() - began
    shop.require_order(dag)
    assert scheduler.finished
    assert overdue == ["a"]
    assert 0.5 <= seconds < 0.5 + 3 * 0.5  # the others did not wait for as long each


def test_watching_leaves_alone_what_is_started_in_time() -> None:
    names = ("a", "b", "c")
    shop = Workshop(held=names)
    scheduler = Scheduler(dag_of({"a": (), "b": ("a",), "c": ("b",)}), shop.start_job, limit=1)
    overdue: list[str] = []
    watch = in_thread(lambda: scheduler.watch(1.0, overdue.append))
    asker = in_thread(scheduler.run_all)
    time.sleep(1.3)  # one that is at work for longer than the patience is not overdue
    shop.let_go()
    join(watch, asker)
    assert overdue == []
    assert shop.ran == list(names)


def test_watching_goes_on_where_the_asker_stopped_asking() -> None:
    """A flow that was offered a stage and died, as of a killed server, takes no place away."""
    shop, dag = Workshop(), dag_of(DIAMOND)
    scheduler = Scheduler(dag, shop.start_job, limit=1)
    turns = scheduler.turns()
    assert next(turns) == "teacher"
    scheduler.follow("teacher", lambda line: None)
    assert next(turns) == "pool"  # and never begins it
    overdue: list[str] = []
    join(in_thread(lambda: scheduler.watch(0.2, overdue.append)))
    assert overdue == ["pool"]
    assert states(scheduler) == dict.fromkeys(DIAMOND, State.completed)
    shop.require_order(dag)


def test_a_slow_asker_and_the_watch_together_keep_the_limit() -> None:
    """What was offered has its place, even if the watch grew impatient meanwhile.

    `late` is offered when `first` ends, `ready` has been waiting for longer: were it begun in its
    stead, three would be at work once the asker begins `late`.
    """
    upstream = {"slow": (), "first": (), "late": ("first",), "ready": ()}
    dag = dag_of({name: upstream[name] for name in ("slow", "first", "late", "ready")})
    shop = Workshop(held=("slow", "first", "late", "ready"))
    scheduler = Scheduler(dag, shop.start_job, limit=2)
    turns = scheduler.turns()
    assert [next(turns), next(turns)] == ["slow", "first"]
    scheduler.begin("first")
    overdue: list[str] = []
    watch = in_thread(lambda: scheduler.watch(1.0, overdue.append))
    time.sleep(0.5)
    shop.let_go("first")
    assert next(turns) == "late"
    until(lambda: overdue == ["slow"])
    until(lambda: shop.at_work == 2)
    scheduler.begin("late")
    time.sleep(0.1)
    shop.let_go()
    join(watch)
    assert shop.most_at_work == 2
    assert scheduler.finished


# -- stopping -------------------------------------------------------------------------------------


def test_stopping_ends_what_is_at_work_and_starts_nothing_more() -> None:
    upstream = {"a": (), "b": (), "c": ("a",), "d": ("c",), "e": ()}
    shop = Workshop(held=("a", "b", "e"))
    scheduler = Scheduler(dag_of(upstream), shop.start_job, limit=2)
    asker = in_thread(scheduler.run_all)
    watch = in_thread(lambda: scheduler.watch(60.0, lambda stage: None))
    shop.await_begin("a", "b")
    scheduler.stop(signal.SIGINT)
    join(asker, watch)
    assert scheduler.stopped_by == signal.SIGINT
    assert states(scheduler) == {
        "a": State.stopped,
        "b": State.stopped,
        "c": State.not_run,
        "d": State.not_run,
        "e": State.not_run,
    }
    scheduler.begin("e")  # a task that comes late starts nothing
    assert scheduler.follow("e", lambda line: None).state is State.not_run
    assert sorted(shop.ran) == ["a", "b"]


def test_stopping_before_anything_ran_settles_everything() -> None:
    shop = Workshop()
    scheduler = Scheduler(dag_of(DIAMOND), shop.start_job, limit=2)
    scheduler.stop()
    assert list(scheduler.turns()) == []
    assert states(scheduler) == dict.fromkeys(DIAMOND, State.not_run)
    assert shop.ran == []


# -- any graph ------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Dag, dict[str, State]]:
    """Draw a graph, what differs in it, and what becomes of the stages that run."""
    number = draw(st.integers(1, 9))
    names = [f"s{i}" for i in range(number)]
    upstream = {
        name: tuple(draw(st.sets(st.sampled_from(names[:i])))) if i else ()
        for i, name in enumerate(names)
    }
    changed = draw(st.sets(st.sampled_from(names)))
    ends = st.sampled_from(
        [State.completed, State.completed, State.cached, State.restored, State.failed]
    )
    return dag_of(upstream, changed), {name: draw(ends) for name in names}


def expected(dag: Dag, ends: Mapping[str, State]) -> dict[str, State]:
    """Say what must become of each stage, from the rules alone."""
    found: dict[str, State] = {}
    for name, stage in dag.stages.items():
        parents = [found[parent] for parent in stage.upstream]
        if any(state in (State.failed, State.not_run) for state in parents):
            found[name] = State.not_run
        elif name in dag.changes or any(state is not State.cached for state in parents):
            found[name] = ends[name]
        else:
            found[name] = State.cached
    return found


@settings(deadline=None, max_examples=60)
@given(graphs(), st.integers(1, 3), st.sampled_from(["alone", "watched", "asked late"]), st.data())
def test_any_graph_comes_to_what_the_rules_say(
    drawn: tuple[Dag, dict[str, State]], limit: int, who: str, data: st.DataObject
) -> None:
    dag, ends = drawn
    shop = Workshop(states=ends)
    told: Counter[str] = Counter()
    scheduler = Scheduler(
        dag,
        shop.start_job,
        limit=limit,
        on_outcome=lambda outcome: told.update([outcome.stage]),
    )
    if who == "alone":
        run_all(scheduler)
    elif who == "watched":
        join(in_thread(lambda: scheduler.watch(0.0, lambda stage: None)))
    else:
        chance = random.Random(data.draw(st.integers(0, 1000)))

        def ask() -> None:
            """Start stages as tasks do: each in a thread of its own, some of them late."""
            for name in scheduler.turns():
                threading.Timer(chance.uniform(0, 0.02), scheduler.begin, [name]).start()

        patience = chance.uniform(0.0, 0.02)
        join(in_thread(ask), in_thread(lambda: scheduler.watch(patience, lambda stage: None)))
    shop.require_order(dag)
    assert states(scheduler) == expected(dag, ends)
    assert told == Counter(dict.fromkeys(dag.stages, 1))
    assert shop.most_at_work <= limit


def test_a_parent_that_is_no_stage_of_the_graph_is_up_to_date() -> None:
    """As the report's is whose evaluations alone are left to do at the end of a sweep."""
    stages = {
        "evaluate": DagStage("evaluate", "", ("student",)),
        "report": DagStage("report", "", ("teacher", "evaluate")),
    }
    change = (Change("dep", "student", "modified"),)
    workshop = Workshop()
    scheduler = Scheduler(Dag(stages, {"evaluate": change}), workshop.start_job, limit=1)
    run_all(scheduler)
    assert states(scheduler) == {"evaluate": State.completed, "report": State.completed}


def test_stopping_what_is_over_changes_nothing() -> None:
    scheduler = Scheduler(dag_of({"a": []}), Workshop().start_job, limit=1)
    run_all(scheduler)
    scheduler.stop(signal.SIGINT)
    assert scheduler.stopped_by is None
