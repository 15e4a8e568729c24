"""An experiment of one student whose artifacts are written by hand: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdci.config.catalog import DATASETS
from kdci.deconfounding.compensation import Compensation
from kdci.exporting.footprint import Footprint, Size
from kdci.exporting.lineage import lineage_of
from kdci.exporting.release import Release
from kdci.models import PixelModel
from kdci.models.pretrained import build_network
from kdci.models.students import COMPENSATION_FILE, Student
from kdci.store.artifacts import new_artifact, open_artifact
from kdci.store.layout import Cell, Layout

SPEC = DATASETS["digits"]
STUDENT, TEACHER = "wrn-10-1", "wrn-16-1"
CELL = Cell(TEACHER, STUDENT, "dfnd", "kdci", pool_seed=0, seed=1)
COMMIT = "0123abcd"
POOL = {
    "num_images": 100,
    "num_holdout": 5,
    "num_open_world": 100,
    "proportions": [0.5, 0.5] + [0.0] * 8,
    "missing_classes": list(range(2, 10)),
    "confidence": 0.75,
    "skipped": {"unreadable": 3, "too small": 0},
}
DICTIONARY = {
    "space": "logits",
    "requested": 5,
    "num_prototypes": 4,
    "dimension": 10,
    "num_predictions": 100,
    "teacher": TEACHER,
    "dictionary_hash": "d1c7",
}
Row = dict[str, Any]


def network(name: str, seed: int = 0) -> PixelModel:
    """Return a network whose BatchNorm statistics are not the ones it starts with."""
    model = build_network(name, SPEC, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_mean"):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=random))
        elif key.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
    return model


def compensation(num_prototypes: int = 4, dimension: int = 10, **changes: Any) -> Compensation:
    random = torch.Generator().manual_seed(1)
    prototypes = 3 * torch.randn(num_prototypes, dimension, generator=random)
    proportions = torch.rand(num_prototypes, generator=random).softmax(dim=0)
    settings: dict[str, Any] = {"num_classes": 10, "scale": "N", **changes}
    return Compensation(prototypes, proportions, **settings)


def student(phi: Compensation | None = None, deploy: str = "backbone") -> Student:
    return Student(network(STUDENT), phi, deploy=deploy).eval()


def facts(phi: Compensation | None) -> dict[str, Any]:
    """Return the facts of a student's card, as `distill` writes them."""
    return {
        **CELL.asdict(),
        "dataset": SPEC.name,
        "num_classes": SPEC.num_classes,
        "channels": SPEC.channels,
        "image_size": SPEC.image_size,
        "mean": list(SPEC.mean),
        "std": list(SPEC.std),
        "num_steps": 12,
        "batch_size": 8,
        "num_images": 130,
        "compensation": None if phi is None else phi.shape(),
        "rebuilt": [],
    }


@dataclass
class Experiment:
    """Artifacts of one student below a project folder."""

    root: Path
    parents: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(self.root, "tiny")

    @property
    def student(self) -> Path:
        return self.layout.student(CELL)

    def write(self, path: Path, kind: str, of_card: Mapping[str, Any]) -> str:
        """Write an artifact that is a card alone, and return its content hash."""
        with new_artifact(path, kind=kind, card={"params": {}, **of_card}) as draft:
            draft.save_json("of.json", [kind, str(of_card)])
        return open_artifact(path, kind=kind).content

    def write_teacher(self) -> None:
        path = self.layout.teacher(TEACHER)
        of_teacher = {
            **{k: v for k, v in facts(None).items() if k in ("channels", "mean", "std")},
            **{"backbone": TEACHER, "dataset": "digits", "num_classes": 10, "image_size": 16},
            "accuracy": 98.5,
        }
        with new_artifact(path, kind="teacher", card={"facts": of_teacher}) as draft:
            draft.save_tensors("model.safetensors", network(TEACHER, seed=3).state_dict())
        self.parents["teacher"] = open_artifact(path, kind="teacher").content

    def write_pool(self, **changes: Any) -> None:
        path = self.layout.pool(TEACHER, CELL.method, CELL.pool_seed)
        block = {"open_world": {"source": "folder", "path": "/home/me/wild"}}
        card = {"facts": {**POOL, **changes}, "params": {"methods.dfnd": block}}
        self.parents["pool"] = self.write(path, "pool", card)

    def write_dictionary(self, path: Path | None = None) -> None:
        path = path or self.layout.dictionary(TEACHER, CELL.method, CELL.pool_seed)
        self.parents["dictionary"] = self.write(path, "dictionary", {"facts": DICTIONARY})

    def write_student(self, phi: Compensation | None, **changes: Any) -> None:
        card = {
            "facts": {**facts(phi), **changes},
            "parents": self.parents,
            "params": {"budget": 0.5},
            "params_hash": "f00d",
            "code": {"revision": COMMIT, "hash": "c0de"},
            "seeds": {"seed": 1, "pool_seed": 0},
            "runtime": {"precision": "bf16"},
            "versions": {"torch": "2.10"},
        }
        with new_artifact(self.student, kind="student", card=card) as draft:
            draft.save_tensors("model.safetensors", network(STUDENT).state_dict())
            if phi is not None:
                draft.save_tensors(COMPENSATION_FILE, phi.state_dict())

    def write_evaluation(self, *rows: Row, num_images: int | None = 899) -> None:
        content = open_artifact(self.student, kind="student").content
        path = self.layout.evaluation(TEACHER, STUDENT, CELL.method)
        card = {"parents": {CELL.name: content}, "facts": {}}
        with new_artifact(path, kind="evaluation", card=card) as draft:
            draft.save_json("cells.json", list(rows or [row()]))
            if num_images is not None:
                expected = torch.zeros(num_images, dtype=torch.int16)
                draft.save_tensors("predictions.safetensors", {"expected": expected})

    def release(self, deploy: str = "backbone", **changes: Any) -> Release:
        """Return a release of the student, with invented parity and speed."""
        found = lineage_of(open_artifact(self.student, kind="student"))
        sizes = {"teacher": Size(2000, 8000), "student": Size(1000, 4000)}
        latencies = {1: {"teacher": 4.0, "student": 1.0}, 32: {"teacher": 9.0, "student": 6.0}}
        formats: dict[str, dict[str, Any]] = {
            "pt2": {"place": "model.pt2"},
            "onnx": {"place": "model.onnx", "opset": 20},
            "mlflow": {"place": "mlflow"},
        }
        made = Release(found, deploy, formats, Footprint(sizes, latencies, 2, "some processor"))
        return replace(made, **changes)


def row(seed: int = 1, **changes: Any) -> Row:
    """Return a row of cells.json."""
    return {
        **replace(CELL, seed=seed).asdict(),
        "accuracy_backbone": 100 * 800 / 899,
        "accuracy_compensated": 100 * 700 / 899,
        "agreement_backbone": 90.0,
        "agreement_compensated": 80.0,
        "calibration_error_backbone": 4.2,
        "marginal_bias_backbone": 0.031,
        **changes,
    }
