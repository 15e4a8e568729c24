"""Made-up results of every stage, as stages leave them, and MLflow's store as read anew."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from kdci.config.params import Params
from kdci.graph.build import graph_of
from kdci.store.artifacts import new_artifact
from kdci.store.hashing import hash_json
from kdci.store.layout import Cell, cells

TEACHER, STUDENT, METHOD = "wrn-16-1", "wrn-10-1", "dfnd"


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
