import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from kdci.config.params import Params
from kdci.errors import BusyError, StorageError
from kdci.graph.build import graph_of
from kdci.store.artifacts import new_artifact
from kdci.store.hashing import hash_json
from kdci.store.layout import Cell, cells
from pipelines import tracking
from tests.project_code import ROOT

TEACHER, STUDENT, METHOD = "wrn-16-1", "wrn-10-1", "dfnd"


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory):
    """One SQLite store for all tests, for making one takes seconds; presets keep them apart."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(autouse=True)
def _no_models(monkeypatch):
    """These students are made up and have no network to export; tests/pipelines/tracking has."""
    monkeypatch.setattr(tracking.Models, "register", lambda self: None)


@pytest.fixture
def params(request):
    return make_params(request.node.name.replace("[", "-").rstrip("]")[:60])


def make_params(preset: str, **changes) -> Params:
    recipe = {"num_epochs": 2, "steps_per_epoch": 5, "batch_size": 4}
    tree = {
        "preset": preset,
        "grid": {
            "teachers": [TEACHER],
            "students": [STUDENT],
            "methods": [METHOD],
            "seeds": [0],
        },
        "data": {"name": "digits"},
        "teacher": {"num_epochs": 3, "batch_size": 4},
        "methods": {METHOD: {"num_selected": 9}},
        "recipes": {METHOD: recipe},
    }
    return Params.model_validate({**tree, **changes})


TIMING = {
    "started": 1000.0,
    "finished": 1100.0,
    "seconds": 99.0,
    "loop_seconds": 60.0,
    "cpu_seconds": 120.0,
    "peak_memory_bytes": 500_000_000,
    "system": [
        {"time": 1002.0, "seconds": 2.1, "cpu_percent": 150.0, "memory_bytes": 400_000_000},
        {"time": 1012.0, "seconds": 12.1, "cpu_percent": 90.0, "memory_bytes": 500_000_000},
    ],
}


class Files:
    """Writes artifacts as the stages do, with made-up numbers."""

    def __init__(self, root: Path, params: Params) -> None:
        self.graph = graph_of(params, root)
        self.layout = self.graph.layout
        self.params = params
        self.grid = params.grid

    def write(self, path, files, *, parents=None, facts=None, metrics=()):
        node = self.graph.by_artifact[path]
        blocks = self.graph.values(node)
        card = {
            "params": blocks,
            "params_hash": hash_json(blocks),
            "code": {"revision": "c0ffee", "hash": "ab" * 32},
            "seeds": {"seed": 0},
            "parents": parents or {},
            "versions": {"torch": "2"},
            "runtime": {"device": "cpu", "threads": 2, "precision": "fp32"},
            "reproducible": True,
            "facts": facts or {},
        }
        with new_artifact(path, kind=node.kind, card=card) as draft:
            for name, value in files.items():
                if name.endswith(".json"):
                    draft.save_json(name, value)
                else:
                    draft.save_tensors(name, {"tensor": torch.tensor([float(value)])})
            if metrics:
                lines = "".join(json.dumps(row) + "\n" for row in metrics)
                (draft.folder / "metrics.jsonl").write_text(lines)
        node.timing.parent.mkdir(parents=True, exist_ok=True)
        node.timing.write_text(json.dumps(TIMING))
        return self.content(path)

    def content(self, path):
        return json.loads((path / "card.json").read_text())["content"]

    def teacher(self, weights=1.0):
        metrics = [{"step": i, "loss": 1 / i, "train_accuracy": 30.0 * i} for i in (1, 2, 3)]
        facts = {"accuracy": 97.5, "train_accuracy": 90.0, "num_steps": 12, "mean": [0.5]}
        return self.write(
            self.layout.teacher(TEACHER),
            {"model.safetensors": weights},
            facts=facts,
            metrics=metrics,
        )

    def pool(self, teacher):
        facts = {"num_images": 100, "confidence": 0.9, "missing_classes": [3], "method": METHOD}
        return self.write(
            self.layout.pool(TEACHER, METHOD, 0),
            {"predictions.safetensors": 2},
            parents={"teacher": teacher},
            facts=facts,
        )

    def dictionary(self, teacher, pool, prototypes=3.0):
        return self.write(
            self.layout.dictionary(TEACHER, METHOD, 0),
            {"dictionary.safetensors": prototypes},
            parents={"teacher": teacher, "pool": pool},
            facts={"num_prototypes": 10, "space": "logits"},
        )

    def student(self, cell: Cell, teacher, pool, dictionary, weights=None):
        parents = {"teacher": teacher, "pool": pool}
        if cell.variant == "kdci":
            parents["dictionary"] = dictionary
        if weights is None:
            weights = 10 * cell.seed + (cell.variant == "kdci")
        return self.write(
            self.layout.student(cell),
            {"model.safetensors": weights},
            parents=parents,
            facts={**cell.asdict(), "num_steps": 10, "num_images": 95},
            metrics=student_metrics(),
        )

    def evaluation(self, students, *, accuracy=50.0):
        rows, curves = [], []
        for cell in students:
            kdci = cell.variant == "kdci"
            row = {
                **cell.asdict(),
                "accuracy": accuracy and accuracy + kdci,
                "accuracy_backbone": accuracy and accuracy + kdci,
                "accuracy_compensated": accuracy if kdci else None,
                "teacher_accuracy": accuracy and 97.5,
                "agreement_backbone": 70.0,
                "agreement_compensated": 71.0 if kdci else None,
                "num_steps": 10,
                "proportions_backbone": [0.5, 0.5],
            }
            rows.append(row)
            points = [
                {"step": 5, "accuracy_backbone": accuracy and 20.0, "agreement_backbone": 40.0},
                {
                    "step": 10,
                    "accuracy_backbone": row["accuracy_backbone"],
                    "agreement_backbone": 70.0,
                },
            ]
            curves.append({**cell.asdict(), "points": points})
        parents = {
            "teacher": self.content(self.layout.teacher(TEACHER)),
            "pool0": self.content(self.layout.pool(TEACHER, METHOD, 0)),
        }
        return self.write(
            self.layout.evaluation(TEACHER, STUDENT, METHOD),
            {"cells.json": rows, "curves.json": curves},
            parents=parents | {cell.name: content for cell, content in students.items()},
            facts={"num_cells": len(rows), "evaluated_on": "test"},
        )

    def report(self, note="first"):
        figures = self.layout.report / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        (figures / "curves.png").write_bytes(b"png")
        (self.layout.report / "ledger.json").write_text("[]")
        (self.layout.report / "report.md").write_text(note)
        rows = [{"preset": self.layout.preset, "accuracy": 50.0}]
        (self.layout.report / "results.json").write_text(json.dumps(rows))

    def everything(self):
        teacher = self.teacher()
        pool = self.pool(teacher)
        dictionary = self.dictionary(teacher, pool)
        students = {c: self.student(c, teacher, pool, dictionary) for c in cells(self.grid)}
        self.evaluation(students)
        self.report()
        return teacher, pool, dictionary, students

    def work(self, cell: Cell, metrics, *, key="0123456789abcdef"):
        node = self.graph.by_artifact[self.layout.student(cell)]
        folder = self.layout.work / "work" / node.name / key
        folder.mkdir(parents=True, exist_ok=True)
        identity = {
            "artifact": self.layout.relative(node.artifact),
            "params": self.graph.values(node),
            "parents": {},
            "code": "ab" * 8,
            "key": key * 4,
            "started": time.time() - 5,
            "pid": os.getpid(),
        }
        (folder / "identity.json").write_text(json.dumps(identity))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        return folder

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        lock = self.layout.work / "locks" / f"{folder.parent.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield


def student_metrics(num_epochs=2):
    return [
        {"step": 5 * (i + 1), "epoch": i, "loss": 2.0 - i, "agreement": 30.0 + i}
        for i in range(num_epochs)
    ]


@pytest.fixture
def files(tmp_path, params):
    return Files(tmp_path / "project", params)


class Seen:
    """The store as an independent reader sees it."""

    def __init__(self, uri: str, preset: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri)
        experiment = self.client.get_experiment_by_name(f"kdci-{preset}")
        self.runs = self.client.search_runs([experiment.experiment_id], max_results=1000)

    def named(self, name: str):
        return [run for run in self.runs if run.info.run_name == name]

    def one(self, name: str, kind="stage"):
        (run,) = [r for r in self.named(name) if r.data.tags["kdci.run"] == kind]
        return run

    def cell(self, cell: Cell):
        (run,) = [r for r in self.runs if r.data.tags.get("kdci.cell") == cell.name]
        return run

    def children(self, run):
        parent = run.info.run_id
        return [r for r in self.runs if r.data.tags.get("mlflow.parentRunId") == parent]

    def points(self, run):
        """All metric points, read from the store rather than as latest values."""
        return sorted(
            (metric.key, metric.step, metric.value)
            for key in run.data.metrics
            for metric in self.client.get_metric_history(run.info.run_id, key)
        )

    def state(self):
        """Everything that a second sync must leave as it is."""
        return {
            run.info.run_id: (run.info.status, run.data.tags, run.data.params, self.points(run))
            for run in self.runs
        }

    def files(self, run, folder=None):
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.mark.slow
def test_complete_experiment_becomes_cells_with_children_and_shared_runs(files, params, store_uri):
    files.everything()
    summary = tracking.sync(files.layout, params, tracking_uri=store_uri)
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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    before = Seen(store_uri, params.preset).state()
    again = tracking.sync(files.layout, params, tracking_uri=store_uri)
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
        patch.setattr(tracking.Store, "log_file", fail_later)
        with pytest.raises(StorageError, match="went away"):
            tracking.sync(files.layout, params, tracking_uri=store_uri)
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    seen = Seen(store_uri, params.preset)
    assert len(seen.runs) == 11
    for run in seen.runs:
        points = seen.points(run)
        assert len(points) == len(set(points))


def test_rerun_with_new_params_adds_a_child_and_the_parent_shows_the_newest(
    files, params, store_uri
):
    teacher, pool, dictionary, students = files.everything()
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    cell = Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0)
    first = Seen(store_uri, params.preset)
    changed = make_params(params.preset, distill={"num_snapshots": 3})
    rerun = Files(files.layout.root, changed)
    students[cell] = rerun.student(cell, teacher, pool, dictionary, weights=77)
    between = tracking.sync(files.layout, changed, tracking_uri=store_uri)
    # the other student has old params, and the evaluation scored an old student
    assert (between.created, between.pending) == (1, 2)
    seen = Seen(store_uri, params.preset)
    assert seen.cell(cell).info.status == "SCHEDULED"
    rerun.evaluation(students, accuracy=60.0)
    tracking.sync(files.layout, changed, tracking_uri=store_uri)
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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    files.evaluation(students, accuracy=None)
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    seen = Seen(store_uri, params.preset)
    parent = seen.cell(Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0))
    assert not [name for name in parent.data.metrics if name.startswith("accuracy")]
    assert parent.data.metrics["agreement_backbone"] == 70.0
    assert len(seen.children(parent)) == 3  # the student, the old and the new score
    assert tracking.sync(files.layout, params, tracking_uri=store_uri).created == 0


def test_dictionary_versions_count_distinct_contents(files, params, store_uri):
    teacher = files.teacher()
    pool = files.pool(teacher)
    for prototypes in (3.0, 4.0, 3.0):
        files.dictionary(teacher, pool, prototypes)
        tracking.sync(files.layout, params, tracking_uri=store_uri)
    runs = Seen(store_uri, params.preset).named(f"dictionary@{TEACHER}-{METHOD}-0")
    versions = {r.data.tags["kdci.content"]: r.data.tags["kdci.dictionary_version"] for r in runs}
    assert len(runs) == 2
    assert set(versions.values()) == {"1", "2"}
    changed = make_params(params.preset, dictionary={"num_prototypes": 4})
    Files(files.layout.root, changed).dictionary(teacher, pool, 3.0)
    tracking.sync(files.layout, changed, tracking_uri=store_uri)
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
        tracking.sync(files.layout, params, tracking_uri=store_uri)
    assert len(Seen(store_uri, params.preset).named("report")) == 2
    (files.layout.report / "results.json").write_text(json.dumps([{"preset": "other"}]))
    assert tracking.sync(files.layout, params, tracking_uri=store_uri).created == 0


def test_damaged_files_are_warnings(files, params, store_uri):
    teacher = files.teacher()
    pool = files.pool(teacher)
    files.dictionary(teacher, pool)
    (files.layout.pool(TEACHER, METHOD, 0) / "predictions.safetensors").write_bytes(b"x")
    (files.layout.dictionary(TEACHER, METHOD, 0) / "card.json").write_text("{")
    folder = files.work(Cell(TEACHER, STUDENT, METHOD, "kdci", 0, 0), [])
    (folder / "identity.json").write_text("[]")
    summary = tracking.sync(files.layout, params, tracking_uri=store_uri)
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
        summary = tracking.sync(files.layout, params, tracking_uri=store_uri)
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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
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
        tracking.sync(files.layout, params, tracking_uri=store_uri)
    shutil.rmtree(folder)
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    seen = Seen(store_uri, params.preset)
    assert seen.one(f"distill@{TEACHER}-{STUDENT}-{METHOD}-kdci-0-0").info.status == "KILLED"
    Files(files.layout.root, make_params("other")).work(cell, student_metrics(1))
    assert tracking.sync(files.layout, params, tracking_uri=store_uri).created == 0


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
    tracking.sync(files.layout, params, tracking_uri=store_uri)
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

    total = tracking.follow(
        files.layout, params, tracking_uri=store_uri, poll_interval=0.01, on_pass=on_pass
    )
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

    total = tracking.follow(
        files.layout, params, tracking_uri=store_uri, poll_interval=0.01, on_pass=on_pass
    )
    assert passes[1].warnings == ("store: went away",)
    assert (len(passes), total.pending, total.warnings) == (3, 0, ())


def test_follow_returns_what_it_has_when_interrupted(files, params, store_uri):
    files.teacher()

    def interrupt(_):
        raise KeyboardInterrupt

    total = tracking.follow(files.layout, params, tracking_uri=store_uri, on_pass=interrupt)
    assert (total.created, total.pending) == (1, 5)


def test_default_store_lies_in_the_project_and_is_made_again_when_lost(
    tmp_path, params, store_uri, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    root = tmp_path / "kdci тест 空 'q\" 50% a?b"
    files = Files(root, params)
    files.everything()
    elsewhere_logged = tracking.sync(files.layout, params, tracking_uri=store_uri)
    (root / "mlflow.db").touch()  # all that is left of a lost store
    assert tracking.sync(files.layout, params) == elsewhere_logged
    seen = Seen(tracking.resolve_uri(root, None), params.preset)
    before = Seen(store_uri, params.preset)
    for run, other in zip(by_name(seen), by_name(before), strict=True):
        assert seen.points(run) == before.points(other)
        assert seen.files(run) == before.files(other)
    assert (root / "mlruns").is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, root])
    assert list(elsewhere.iterdir()) == []


def by_name(seen: Seen):
    return sorted(seen.runs, key=lambda r: (r.info.run_name, sorted(r.data.metrics)))


def test_environment_variable_names_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking.resolve_uri(tmp_path, None) == "http://tracking:5000"
    assert tracking.resolve_uri(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_dead_server_is_one_quick_line(files, params, scheme, tmp_path):
    """In a process of its own: its stderr is what a user would see."""
    files.teacher()
    uri = f"{scheme}://user:canary@127.0.0.1:{closed_port()}/x?token=canary"
    before = sorted(files.layout.root.rglob("*"))
    code = (
        "import sys; from pathlib import Path; from kdci.errors import KdciError\n"
        "from kdci.store.layout import Layout; from kdci.config.params import Params\n"
        "from pipelines import tracking\n"
        "params = Params.model_validate_json(sys.argv[2])\n"
        "try: tracking.sync(Layout(Path(sys.argv[1]), params.preset), params)\n"
        "except KdciError as error: sys.exit(f'{error.exit_code} {error.lines()}')\n"
    )
    arguments = [str(files.layout.root), params.model_dump_json(by_alias=True)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
    )
    assert time.monotonic() - began < 25
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("4 ['kdci: error: " + scheme)
    assert "does not answer" in line
    assert "canary" not in done.stderr + done.stdout
    after = [path for path in sorted(files.layout.root.rglob("*")) if ".kdci" not in path.parts]
    assert after == before


def test_server_that_accepts_and_hangs_is_given_up(files, params, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
            tracking.sync(files.layout, params, tracking_uri=uri)
        assert time.monotonic() - began < 10


def test_file_that_is_no_database_is_refused_at_once(files, params, tmp_path):
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    began = time.monotonic()
    with pytest.raises(StorageError, match="not a database"):
        tracking.sync(files.layout, params, tracking_uri=f"sqlite:///{broken}")
    assert time.monotonic() - began < 5
    assert broken.read_bytes() == b"no database" * 100


def test_two_syncs_do_not_write_at_once(files, params, store_uri, monkeypatch):
    monkeypatch.setattr(tracking, "LOCK_TIMEOUT", 0.1)
    lock = tracking.sqlite_file(store_uri).parent / ".kdci" / "tracking.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock), pytest.raises(BusyError) as caught:
        tracking.sync(files.layout, params, tracking_uri=store_uri)
    assert caught.value.exit_code == 6
    assert tracking.sync(files.layout, params, tracking_uri=store_uri).created == 0


def test_deleted_experiment_says_how_to_get_it_back(files, params, store_uri):
    tracking.sync(files.layout, params, tracking_uri=store_uri)
    client = Seen(store_uri, params.preset).client
    experiment = client.get_experiment_by_name(f"kdci-{params.preset}")
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(StorageError, match=f"experiment-id {experiment.experiment_id}"):
        tracking.sync(files.layout, params, tracking_uri=store_uri)


def test_import_costs_no_mlflow():
    code = "import sys, pipelines.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
