"""What a sync makes of the files that stages leave."""

import json
import shutil
from collections import Counter

import pytest

from kdci.errors import StorageError
from kdci.store.artifacts import new_artifact
from kdci.store.layout import Cell
from pipelines import tracking
from tests.pipelines.tracking._made_up import (
    METHOD,
    STUDENT,
    TEACHER,
    Files,
    Seen,
    make_params,
    student_metrics,
)

pytestmark = pytest.mark.usefixtures("no_models")


@pytest.mark.slow
def test_complete_experiment_becomes_cells_with_children_and_shared_runs(files, params, store_uri):
    files.everything()
    summary = tracking.sync(files.layout, params)
    assert (summary.pending, summary.running, summary.warnings) == (0, 0, ())
    seen = Seen(store_uri, params.preset)
    # 2 cells x (parent, distill, score), teacher, pool, dictionary, evaluation, report
    kinds = Counter(run.data.tags["kdci.run"] for run in seen.runs)
    assert kinds == {"cell": 2, "stage": 6, "score": 2, "report": 1}
    assert summary.created == 11
    assert {run.info.status for run in seen.runs} == {"FINISHED"}
    cell = Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0)
    children = seen.children(seen.cell(cell))
    names = {child.info.run_name for child in children}
    evaluation = f"evaluate@{TEACHER}-{STUDENT}-{METHOD}"
    distill = f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0"
    assert names == {evaluation, distill}
    shared = seen.one(f"teacher@{TEACHER}")
    assert "mlflow.parentRunId" not in shared.data.tags
    for run in (seen.cell(cell), seen.one(distill)):
        assert run.data.tags["dep.teacher"] == shared.info.run_id
        pool = seen.one(f"substitute@{TEACHER}-{METHOD}-0")
        assert run.data.tags["dep.pool"] == pool.info.run_id
        dictionary = seen.one(f"dictionary@{TEACHER}-{METHOD}-0")
        assert run.data.tags["dep.dictionary"] == dictionary.info.run_id


def test_numbers_params_and_tags_are_those_of_the_files(files, params, store_uri):
    files.everything()
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    cell = Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0)
    final = {
        "accuracy": 51.0,
        "accuracy_backbone": 51.0,
        "accuracy_compensated": 50.0,
        "agreement_backbone": 70.0,
        "agreement_compensated": 71.0,
        "teacher_accuracy": 97.5,
        "num_steps": 10.0,
        "seconds": 60.0,
        "peak_memory_megabytes": 500.0,
    }
    compared = {
        "gain_over_vanilla": 1.0,
        "agreement_over_vanilla": 0.0,
        "seconds_over_vanilla": 0.0,
    }
    parent = seen.cell(cell)
    assert parent.data.metrics == final | compared
    assert parent.data.params == {name: str(value) for name, value in cell.asdict().items()}
    assert parent.data.tags["kdci.arm"] == "dfnd/kdci"
    score = next(r for r in seen.children(parent) if r.data.tags["kdci.run"] == "score")
    assert parent.data.tags["kdci.budget"] == score.data.tags["kdci.budget"] == "1"
    assert score.data.metrics == final
    curve = [(k, s, v) for k, s, v in seen.points(score) if k == "accuracy_backbone"]
    assert curve == [("accuracy_backbone", 5, 20.0), ("accuracy_backbone", 10, 51.0)]
    vanilla = seen.cell(Cell(TEACHER, STUDENT, METHOD, "vanilla", 0, 0))
    assert "accuracy_compensated" not in vanilla.data.metrics
    assert not compared.keys() & vanilla.data.metrics.keys()
    student = seen.one(f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0")
    expected = [(k, r["step"], r[k]) for r in student_metrics() for k in r if k != "step"]
    facts = {"num_steps": 10, "num_images": 95, "seconds": 99.0, "loop_seconds": 60.0}
    facts |= {"cpu_seconds": 120.0, "peak_memory_bytes": 5e8}
    system = [
        ("system/process_cpu_percentage", 2, 150.0),
        ("system/process_cpu_percentage", 12, 90.0),
        ("system/process_memory_megabytes", 2, 400.0),
        ("system/process_memory_megabytes", 12, 500.0),
    ]
    facts = [(name, 10, value) for name, value in facts.items()]
    assert seen.points(student) == sorted([*expected, *facts, *system])
    assert student.data.params[f"recipes.{METHOD}.batch_size"] == "4"
    assert "teacher.num_epochs" not in student.data.params
    tags = student.data.tags
    assert tags["dvc.stage"] == f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0"
    assert (tags["git.commit"], tags["runtime.threads"]) == ("c0ffee", "2")
    axes = ("teacher", "student", "method", "variant", "pool_seed", "seed", "preset")
    found = [tags[f"kdci.{axis}"] for axis in axes]
    assert found == [TEACHER, STUDENT, METHOD, "kdci", "0", "0", params.preset]
    assert student.info.start_time == 1_000_000
    assert student.info.end_time == 1_100_000


def test_cards_dictionary_and_report_are_logged_and_weights_are_not(files, params, store_uri):
    files.everything()
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    assert seen.files(seen.one(f"teacher@{TEACHER}")) == {"card.json"}
    dictionary = seen.one(f"dictionary@{TEACHER}-{METHOD}-0")
    names = {"dictionary/dictionary.safetensors", "dictionary/card.json"}
    assert seen.files(dictionary, "dictionary") == names
    student = seen.one(f"distill@{TEACHER}-{STUDENT}-{METHOD}-vanilla-0-0")
    assert seen.files(student) == {"card.json"}
    assert len(student.data.tags["sha256.model.safetensors"]) == 64
    report = seen.one("report", kind="report")
    assert seen.files(report) == {"figures", "ledger.json", "report.md", "results.json"}
    assert seen.files(report, "figures") == {"figures/curves.png"}


def test_second_sync_adds_nothing(files, params, store_uri):
    files.everything()
    files.work(Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0), student_metrics(1))
    tracking.sync(files.layout, params)
    before = Seen(store_uri, params.preset).state()
    again = tracking.sync(files.layout, params)
    assert (again.created, again.points) == (0, 0)
    assert Seen(store_uri, params.preset).state() == before


def test_sync_that_was_cut_short_is_completed(files, params, store_uri, monkeypatch):
    files.everything()
    calls = 0

    def fail_later(self, record, file, folder=None):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StorageError("store", "went away")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Store, "copy", fail_later)
        with pytest.raises(StorageError, match="went away"):
            tracking.sync(files.layout, params)
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    assert len(seen.runs) == 11
    for run in seen.runs:
        points = seen.points(run)
        assert len(points) == len(set(points))


def test_rerun_with_new_params_adds_a_child_and_the_parent_shows_the_newest(
    files, params, store_uri
):
    teacher, pool, dictionary, students = files.everything()
    tracking.sync(files.layout, params)
    cell = Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0)
    first = Seen(store_uri, params.preset)
    changed = make_params(params.preset, distill={"num_snapshots": 3})
    rerun = Files(files.layout.root, changed)
    students[cell] = rerun.student(cell, teacher, pool, dictionary, weights=77)
    between = tracking.sync(files.layout, changed)
    # the other student has old params, and the evaluation scored an old student
    assert (between.created, between.pending) == (1, 2)
    seen = Seen(store_uri, params.preset)
    assert seen.cell(cell).info.status == "SCHEDULED"
    rerun.evaluation(students, accuracy=60.0)
    tracking.sync(files.layout, changed)
    seen = Seen(store_uri, params.preset)
    parent = seen.cell(cell)
    assert parent.info.run_id == first.cell(cell).info.run_id
    assert parent.data.metrics["accuracy"] == 61.0
    runs = seen.named(f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0")
    assert sorted(r.data.params["distill.num_snapshots"] for r in runs) == ["3", "8"]
    newest = next(r for r in runs if r.data.params["distill.num_snapshots"] == "3")
    assert parent.data.tags["dep.student"] == newest.info.run_id
    assert parent.data.tags["kdci.student_content"] == students[cell]


def test_metric_that_is_gone_leaves_the_parent(files, params, store_uri):
    *_, students = files.everything()
    tracking.sync(files.layout, params)
    files.evaluation(students, accuracy=None)
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    parent = seen.cell(Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0))
    assert not [name for name in parent.data.metrics if name.startswith("accuracy")]
    assert parent.data.metrics["agreement_backbone"] == 70.0
    assert len(seen.children(parent)) == 3  # the student, the old and the new score
    assert tracking.sync(files.layout, params).created == 0


def test_dictionary_versions_count_distinct_contents(files, params, store_uri):
    teacher = files.teacher()
    pool = files.pool(teacher)
    for prototypes in (3.0, 4.0, 3.0):
        files.dictionary(teacher, pool, prototypes)
        tracking.sync(files.layout, params)
    runs = Seen(store_uri, params.preset).named(f"dictionary@{TEACHER}-{METHOD}-0")
    versions = {r.data.tags["kdci.content"]: r.data.tags["kdci.dictionary_version"] for r in runs}
    assert len(runs) == 2
    assert set(versions.values()) == {"1", "2"}
    changed = make_params(params.preset, dictionary={"num_prototypes": 4})
    Files(files.layout.root, changed).dictionary(teacher, pool, 3.0)
    tracking.sync(files.layout, changed)
    runs = Seen(store_uri, params.preset).named(f"dictionary@{TEACHER}-{METHOD}-0")
    by_params = {
        (r.data.params["dictionary.num_prototypes"], versions[r.data.tags["kdci.content"]])
        for r in runs
    }
    assert by_params == {("10", "1"), ("10", "2"), ("4", "1")}
    assert [r.data.tags["kdci.dictionary_version"] for r in runs].count("1") == 2


def test_new_report_is_a_new_run_and_another_presets_report_is_not_ours(files, params, store_uri):
    for note in ("first", "second", "first"):
        files.report(note)
        tracking.sync(files.layout, params)
    assert len(Seen(store_uri, params.preset).named("report")) == 2
    (files.layout.report / "results.json").write_text(json.dumps([{"preset": "other"}]))
    assert tracking.sync(files.layout, params).created == 0


def test_damaged_files_are_warnings(files, params, store_uri):
    teacher = files.teacher()
    pool = files.pool(teacher)
    files.dictionary(teacher, pool)
    (files.layout.pool(TEACHER, METHOD, 0) / "predictions.safetensors").write_bytes(b"x")
    (files.layout.dictionary(TEACHER, METHOD, 0) / "card.json").write_text("{")
    folder = files.work(Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0), [])
    (folder / "identity.json").write_text("[]")
    summary = tracking.sync(files.layout, params)
    assert len(summary.warnings) == 3
    assert all("\n" not in warning for warning in summary.warnings)
    assert any("predictions.safetensors: does not match" in text for text in summary.warnings)
    assert [r.info.run_name for r in Seen(store_uri, params.preset).runs] == [f"teacher@{TEACHER}"]


def test_live_work_is_one_run_from_start_to_artifact(files, params, store_uri):
    teacher = files.teacher()
    pool = files.pool(teacher)
    cell = Cell(TEACHER, STUDENT, METHOD, "vanilla", 0, 0)
    name = f"distill@{TEACHER}-{STUDENT}-{METHOD}-vanilla-0-0"

    def sync():
        summary = tracking.sync(files.layout, params)
        seen = Seen(store_uri, params.preset)
        run = seen.one(name)
        losses = [point for point in seen.points(run) if point[0] == "loss"]
        return summary, run, losses, seen.cell(cell).info.status

    folder = files.work(cell, student_metrics(1))
    with files.lock(folder):
        summary, first, losses, parent_status = sync()
        assert (summary.running, first.info.status, parent_status) == (1, "RUNNING", "RUNNING")
        assert losses == [("loss", 5, 2.0)]
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(student_metrics(2)[1]) + '\n{"step": 15, "lo')  # a torn line
        assert sync()[2] == [("loss", 5, 2.0), ("loss", 10, 1.0)]
    summary, run, losses, parent_status = sync()  # nobody holds the lock: it was killed
    assert (summary.running, run.info.status, parent_status) == (0, "KILLED", "KILLED")
    note = {"exit_code": 5, "message": "loss is nan"}
    (folder / "failure.json").write_text(json.dumps(note))
    _, run, _, parent_status = sync()
    assert (run.info.status, parent_status) == ("FAILED", "FAILED")
    assert run.data.tags["kdci.failure"] == "loss is nan (exit code 5)"
    (folder / "failure.json").unlink()
    files.work(cell, student_metrics(1))  # resumed from a checkpoint that knows one line
    with files.lock(folder):
        assert sync()[1].info.status == "RUNNING"
        files.student(cell, teacher, pool, None)  # in place, but the stage is not done yet
        assert sync()[1].info.status == "RUNNING"
        shutil.rmtree(folder)
    summary, run, losses, _ = sync()
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    assert losses == [("loss", 5, 2.0), ("loss", 10, 1.0)]
    assert run.data.tags["kdci.failure"] == ""
    assert run.data.params["distill.num_snapshots"] == "8"


def test_stopped_by_a_signal_is_killed_not_failed(files, params, store_uri):
    cell = Cell(TEACHER, STUDENT, METHOD, "vanilla", 0, 0)
    folder = files.work(cell, student_metrics(1))
    (folder / "failure.json").write_text(json.dumps({"exit_code": 143, "message": "stopped"}))
    tracking.sync(files.layout, params)
    (run,) = Seen(store_uri, params.preset).named(
        f"distill@{TEACHER}-{STUDENT}-{METHOD}-vanilla-0-0"
    )
    assert run.info.status == "KILLED"


def test_work_that_was_cleaned_away_is_killed_and_other_presets_work_is_ignored(
    files, params, store_uri
):
    cell = Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0)
    folder = files.work(cell, student_metrics(1))
    with files.lock(folder):
        tracking.sync(files.layout, params)
    shutil.rmtree(folder)
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    assert seen.one(f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0").info.status == "KILLED"
    Files(files.layout.root, make_params("other")).work(cell, student_metrics(1))
    assert tracking.sync(files.layout, params).created == 0


def test_long_curves_and_values_keep_within_the_limits_of_mlflow(files, params, store_uri):
    metrics = [{"step": i, "loss": i / 7, "lr": 1 / (i + 1)} for i in range(1300)]
    path = files.layout.teacher(TEACHER)
    with new_artifact(
        path,
        kind="teacher",
        card={
            "params": {"teacher": {"long": "x" * 7000, **{f"p{i}": i for i in range(150)}}},
            "facts": {},
        },
    ) as draft:
        lines = "".join(json.dumps(row) + "\n" for row in metrics)
        (draft.folder / "metrics.jsonl").write_text(lines)
    tracking.sync(files.layout, params)
    seen = Seen(store_uri, params.preset)
    run = seen.one(f"teacher@{TEACHER}")
    expected = [(k, row["step"], row[k]) for row in metrics for k in ("loss", "lr")]
    assert seen.points(run) == sorted(expected)
    assert len(run.data.params) == 151
    assert len(run.data.params["teacher.long"]) == 6000


def test_follow_ends_when_all_is_there_and_nothing_runs(files, params, store_uri):
    teacher, pool, dictionary, students = files.everything()
    cell = next(iter(students))
    shutil.rmtree(files.layout.student(cell))
    passes = []

    def on_pass(summary):
        passes.append(summary)
        if len(passes) == 2:
            files.student(cell, teacher, pool, dictionary)

    total = tracking.follow(files.layout, params, poll_interval=0.01, on_pass=on_pass)
    assert [summary.pending for summary in passes] == [2, 2, 0]  # the student and its score
    assert total.created == sum(summary.created for summary in passes) == 11


def test_follow_outlives_a_store_that_fails_after_the_first_pass(
    files, params, store_uri, monkeypatch
):
    _, _, _, students = files.everything()
    missing = files.layout.student(next(iter(students)))
    missing.rename(missing.with_name("aside"))
    refresh = tracking.Store.refresh
    outcomes = iter([None, StorageError("store", "went away"), None])

    def sometimes(self):
        error = next(outcomes)
        if error is not None:
            raise error
        refresh(self)

    monkeypatch.setattr(tracking.Store, "refresh", sometimes)
    passes = []

    def on_pass(summary):
        passes.append(summary)
        if len(passes) == 2:
            missing.with_name("aside").rename(missing)

    total = tracking.follow(files.layout, params, poll_interval=0.01, on_pass=on_pass)
    assert passes[1].warnings == ("store: went away",)
    assert (len(passes), total.pending, total.warnings) == (3, 0, ())


def test_follow_returns_what_it_has_when_interrupted(files, params, store_uri):
    files.teacher()

    def interrupt(_):
        raise KeyboardInterrupt

    total = tracking.follow(files.layout, params, on_pass=interrupt)
    assert (total.created, total.pending) == (1, 5)
