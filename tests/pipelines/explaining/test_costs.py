"""What a stage will take: from its own past, else from its closest kin, by the number of steps."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import pytest

from kdci.store.layout import Layout
from kdci.substitution.registry import method_names
from pipelines.explaining.costs import ExpectedTime, expected_time, wall_seconds
from pipelines.explaining.differences import Comparison, compare
from pipelines.explaining.past_runs import PastRun, read_past_runs
from pipelines.explaining.tasks import Task, num_steps
from pipelines.graph.dag import Dag, DagStage, read_dag
from pipelines.params.edit import write_preset
from pipelines.params.presets import preset_names
from pipelines.running import journal
from pipelines.running.journal import Execution


def student(variant: str = "kdci", method: str = "fast", seed: int = 0, teacher: str = "a") -> Task:
    axes = {"teacher": teacher, "student": "b", "method": method, "variant": variant}
    return Task("distill", {**axes, "pool_seed": "0", "seed": str(seed)})


def past(task: Task, seconds: float, loop: float = 0.0, steps: int | None = None) -> PastRun:
    return PastRun(task, 0.0, seconds, seconds, loop, steps)


def of(task: Task, steps: int | None, *runs: PastRun) -> ExpectedTime | None:
    return expected_time(task, steps, runs)


# -- what a task and params say -------------------------------------------------------------------


def test_what_a_stage_works_on_is_what_the_record_says() -> None:
    assert Task.read("teacher", {"other": "wrn-10-1"}) == Task("teacher", {"other": "wrn-10-1"})
    assert Task.read("distill", {"seed": 0}) == Task("distill", {"seed": "0"})
    assert Task.read("report", {}) == Task("report", {})
    for stage, point in ((None, None), ("", {}), ("teacher", None), ("teacher", "wrn-10-1")):
        assert Task.read(stage, point) is None


@pytest.mark.parametrize(
    ("stage", "method", "params", "steps"),
    [
        ("teacher", "", {"teacher": {"num_epochs": 16}}, 16),
        ("distill", "fast", {"recipes.fast": {"num_epochs": 4, "steps_per_epoch": 50}}, 200),
        ("distill", "tail", {"recipes.cmi": {"num_epochs": 2, "steps_per_epoch": 3}}, 6),
        ("substitute", "dafl", {"methods.dafl": {"num_steps": 800}}, 800),
        ("substitute", "cmi", {"methods.cmi": {"warmup_calls": 12, "num_steps": 25}}, 300),
        ("substitute", "mosaick", {"methods.mosaick": {"warmup_steps": 500}}, 500),
        ("substitute", "dfnd", {"methods.dfnd": {"num_selected": 5}}, None),
        ("distill", "fast", {"recipes.fast": {"num_epochs": 4}}, None),
        ("distill", "fast", {}, None),
        ("evaluate", "fast", {"recipes.fast": {"num_epochs": 4}}, None),
    ],
)
def test_number_of_steps(stage: str, method: str, params: dict, steps: int | None) -> None:
    assert num_steps(Task(stage, {"method": method}), params) == steps


@pytest.mark.parametrize("preset", preset_names())
def test_steps_of_every_method_are_in_the_presets(preset: str, tmp_path) -> None:
    """The keys that are multiplied are those that params.yaml really has."""
    from kdci.config.params_file import load_params

    write_preset(preset, tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml").model_dump(by_alias=True)
    for method in {name for name in method_names() if name in params["methods"]}:
        blocks = {f"{key}.{method}": params[key][method] for key in ("methods", "recipes")}
        assert num_steps(Task("distill", {"method": method}), blocks)
        chooses = method in ("dfnd", "noise")
        assert (num_steps(Task("substitute", {"method": method}), blocks) is None) == chooses


# -- estimates ------------------------------------------------------------------------------------


def test_the_closest_kin_counts() -> None:
    kin = [
        (past(student(), 1.0), "this stage"),
        (past(student(seed=3), 2.0), "other seeds"),
        (past(student(teacher="z"), 4.0), "distill kdci with fast"),
        (past(student(method="dfnd"), 8.0), "distill kdci"),
        (past(student("vanilla"), 16.0), "other arms with fast"),
    ]
    other = [past(Task("teacher", {"teacher": "a"}), 99.0), past(student("x", "dfnd"), 98.0)]
    for closest, (run, named) in enumerate(kin):
        runs = [*other, *(run for run, _ in reversed(kin[closest:]))]
        assert of(student(), None, *runs) == ExpectedTime(run.seconds, 1, named)
    assert of(student(), None, *other) is None


def test_the_other_models_teachers_are_kin_among_themselves() -> None:
    ours, other, further = (
        Task("teacher", point)
        for point in (
            {"teacher": "a"},
            {"other": "a"},
            {"other": "c"},
        )
    )
    assert of(other, None, past(ours, 1.0)) is None
    assert of(other, None, past(ours, 1.0), past(further, 2.0)) == ExpectedTime(2.0, 1, "teacher")


def test_median_of_all_runs() -> None:
    runs = [past(student(), seconds) for seconds in (1.0, 100.0, 3.0)]
    assert of(student(), None, *runs) == ExpectedTime(3.0, 3, "this stage")


def test_only_the_loop_goes_with_the_steps() -> None:
    run = past(student(), 12.0, loop=10.0, steps=100)
    assert of(student(), 200, run) == ExpectedTime(22.0, 1, "this stage", 200, (100,))
    assert of(student(), 50, run) == ExpectedTime(7.0, 1, "this stage", 50, (100,))
    assert of(student(), 100, run) == ExpectedTime(12.0, 1, "this stage")


def test_runs_of_as_many_steps_tell_most() -> None:
    runs = [
        past(student(), 12.0, 10.0, 100),
        past(student(), 25.0, 20.0, 200),
        past(student(), 77.0),  # of how many steps, nobody knows
    ]
    assert of(student(), 200, *runs) == ExpectedTime(25.0, 1, "this stage")
    assert of(student(), 400, *runs) == ExpectedTime(43.5, 2, "this stage", 400, (100, 200))
    assert of(student(), 400, runs[-1]) == ExpectedTime(77.0, 1, "this stage")


def test_steps_of_another_method_mean_something_else() -> None:
    run = past(student(method="dfnd"), 12.0, 10.0, 100)
    assert of(student(), 200, run) == ExpectedTime(12.0, 1, "distill kdci")


def test_wall_time_is_that_of_some_order_of_running() -> None:
    """Against every order in which the stages could be started."""
    parents = {"t": [], "a": ["t"], "b": ["t"], "c": ["a", "b"], "d": [], "e": ["d"]}
    dag = Dag({name: DagStage(name, "", tuple(up)) for name, up in parents.items()})
    seconds = {"t": 2.0, "a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0, "e": 1.0}
    assert wall_seconds(dag, seconds, 1) == sum(seconds.values())
    assert wall_seconds(dag, seconds, 99) == 7.0  # t, a, c
    found = {one_order(parents, seconds, order, 2) for order in permutations(parents)}
    assert wall_seconds(dag, seconds, 2) in found
    assert 7.0 <= wall_seconds(dag, seconds, 2) <= sum(seconds.values())
    del seconds["a"]  # not to be run: c then waits for t and b alone
    assert wall_seconds(dag, seconds, 99) == 5.0
    assert wall_seconds(dag, {}, 2) == 0.0


def one_order(parents: dict, seconds: dict, order: tuple, limit: int) -> float:
    """Return when all end, if stages begin in ``order`` as soon as they can."""
    ends: dict[str, float] = {}
    free = [0.0] * limit
    waiting = list(order)
    while waiting:
        name = next(n for n in waiting if all(p in ends for p in parents[n]))
        waiting.remove(name)
        free.sort()
        ends[name] = max([free.pop(0), *(ends[p] for p in parents[name])]) + seconds[name]
        free.append(ends[name])
    return max(ends.values())


# -- the record of past runs ----------------------------------------------------------------------


def runs_of(tiny, task: Task) -> list[PastRun]:
    dag = read_dag(tiny.root)
    runs = read_past_runs(tiny.layout, dag, tiny.tasks, compare(tiny.root, dag))
    return sorted((r for r in runs if r.task == task), key=lambda r: r.started)


POOL = Task("substitute", {"method": "fast"})


@pytest.mark.slow
def test_past_runs_come_with_their_steps_each_once(tiny) -> None:
    """The stage left one time beside its artifact, which is in the run cache too."""
    (first,) = runs_of(tiny, POOL)
    assert (first.seconds, first.loop_seconds, first.steps) == (5.0, 3.0, 6)
    tiny.edit("methods.fast.num_steps", 5)
    tiny.repro("substitute@fast")
    found = runs_of(tiny, POOL)
    assert [(run.seconds, run.steps) for run in found] == [(5.0, 6), (7.0, 10)]

    # With the cache gone there is what lies beside the artifact.
    for folder in (tiny.root / ".dvc/cache/runs").iterdir():
        for file in folder.rglob("*"):
            if file.is_file():
                file.write_text("{damaged")
    assert [(run.seconds, run.steps) for run in runs_of(tiny, POOL)] == [(7.0, 10)]
    (tiny.root / "artifacts/tiny/timings/pools/fast.json").write_text("[]")
    assert runs_of(tiny, POOL) == []


def test_the_journal_adds_what_starting_takes(tiny) -> None:
    (run,) = runs_of(tiny, POOL)
    whole = Execution("substitute@fast", "completed", "plain", run.finished - 8.0, 8.5)
    lost = Execution("substitute@fast", "completed", "plain", run.finished + 500.0, 30.0)
    for execution in (
        whole,
        lost,
        Execution("substitute@fast", "failed", "plain", run.finished + 1000.0, 1.0, exit_code=5),
        Execution("substitute@fast", "restored", "plain", run.finished + 2000.0, 1.0),
        Execution("no-such-stage", "completed", "plain", run.finished + 3000.0, 1.0),
    ):
        journal.append(tiny.layout, execution)
    found = runs_of(tiny, POOL)
    assert [(one.seconds, one.steps) for one in found] == [(8.5, 6), (30.0, None)]


def test_the_journal_tells_what_ran_or_names_a_stage_of_now(tmp_path: Path) -> None:
    """What an entry says of itself counts, whether or not the grid still has it."""
    layout = Layout(tmp_path, "tiny")
    gone, now = student(teacher="gone"), student()
    entries = {
        "distill@now": {},
        "distill_kdci@pair0": {},  # of an older release
        "distill@gone": {"kind": gone.stage, "point": gone.point},
    }
    for number, (name, told) in enumerate(entries.items()):
        execution = Execution(name, "completed", "plain", 100.0 * number, 1.0, **told)
        journal.append(layout, execution)
    nothing = Comparison({}, {}, tmp_path / "files", tmp_path / "runs")
    runs = read_past_runs(layout, Dag({}, {}), {"distill@now": now}, nothing)
    assert [(run.task, run.started) for run in runs] == [(now, 0.0), (gone, 200.0)]


def test_wall_times_that_do_not_say_of_what_are_left_out(tiny) -> None:
    shutil.rmtree(tiny.root / ".dvc/cache/runs")
    file = tiny.root / "artifacts/tiny/timings/pools/fast.json"
    times = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in times.items() if k not in ("stage", "point")}))
    assert runs_of(tiny, POOL) == []


def test_runs_of_another_preset_are_another_matter(tiny) -> None:
    assert runs_of(tiny, POOL)
    tiny.edit("preset", "larger")
    (tiny.root / "dvc.yaml").write_text(
        (tiny.root / "dvc.yaml").read_text().replace("/tiny/", "/larger/")
    )
    larger = type(tiny.layout)(tiny.root, "larger")
    dag = read_dag(tiny.root)
    assert read_past_runs(larger, dag, tiny.tasks, compare(tiny.root, dag)) == []
