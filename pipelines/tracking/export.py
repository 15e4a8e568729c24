"""A student as a model that MLflow serves: torch.export's pt2, never a pickle."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdci.exporting.graph import Graph

FOLDER = "model"
"""Where it lies among the artifacts of the student's run."""


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
