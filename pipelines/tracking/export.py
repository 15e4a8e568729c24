"""A student as a model that MLflow serves: torch.export's pt2, never a pickle."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdci.exporting.graph import Graph

FOLDER = "model"
"""Where it lies among the artifacts of the student's run."""


def export_student(artifact: Path, folder: Path, *, deploy: str, run_id: str) -> None:
    """Write a student as an MLflow model; its input is float32 images (N, C, H, W) in [0, 1].

    Args:
        artifact: The student's folder.
        folder: Where the model goes; made here.
        deploy: `backbone` or `compensated`: what it answers with.
        run_id: The run that it will belong to.

    Raises:
        KdciError: The artifact is damaged.
        UserError: The student can not be deployed in this form.
        ExportError: It can not be exported.
    """
    from kdci.exporting.graph import trace
    from kdci.models.students import load_student
    from kdci.store.artifacts import read_card

    facts = read_card(artifact, kind="student")["facts"]
    student = load_student(artifact, deploy=deploy)
    graph = trace(student, facts, subject=str(artifact))
    save_model(graph, folder, run_id=run_id, subject=str(artifact))


def save_model(graph: Graph, folder: Path, *, run_id: str | None = None, subject: str) -> None:
    """Write a traced student as an MLflow model.

    Args:
        graph: The student.
        folder: Where the model goes; made here.
        run_id: The run that it will belong to; None: to none.
        subject: Whom errors are about.

    Raises:
        ExportError: It can not be written.
    """
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from kdci.exporting.graph import exporting

    with exporting(subject):
        images, logits = (-1, *graph.shape), (-1, graph.num_classes)
        # Without names: MLflow would hand a named input over as a dict.
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype("float32"), images)]),
            outputs=Schema([TensorSpec(np.dtype("float32"), logits)]),
        )
        mlflow.pytorch.save_model(
            graph.program.module(),
            str(folder),
            mlflow_model=Model(artifact_path=FOLDER, run_id=run_id),
            serialization_format="pt2",
            signature=signature,
            # Two images: of one, the exporter would take the batch size for a constant.
            input_example=np.full((2, *graph.shape), 0.5, dtype=np.float32),
            pip_requirements=_requirements(),
        )
        # MLflow traced the graph once more, with stack traces that tell of this machine's folders.
        (written,) = folder.rglob("*.pt2")
        torch.export.save(graph.program, written)


def _requirements() -> list[str]:
    """Name what serving needs; torch without the build's label, which no index knows."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy")]
