"""dictionary: cluster the teacher's predictions on the pool into the confounder dictionary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._main import Stage, main
from stages._pool import open_teacher
from stages._session import Session

if TYPE_CHECKING:
    from kdci.artifacts import Artifact


def build(session: Session) -> None:
    """Build the cell's own dictionary, or adopt another teacher's (`dictionary.artifact`)."""
    block = session.params.dictionary
    session.parent("teacher", _teacher_path(session))
    session.parent("pool", _pool_path(session))
    if block.artifact is not None:
        adopt(session, session.parent("dictionary", session.layout.root / block.artifact))
        return
    _build_own(session)


def _teacher_path(session: Session) -> Path:
    return session.layout.teacher(str(session.identity.cell["teacher"]))


def _pool_path(session: Session) -> Path:
    cell = session.identity.cell
    return session.layout.pool(str(cell["teacher"]), str(cell["method"]), int(cell["pool_seed"]))


def _build_own(session: Session) -> None:
    import torch

    from kdci.confounder import build_dictionary, predict
    from kdci.data.image_bank import open_npy
    from kdci.evaluation import PREDICTION_BATCH, image_batches
    from kdci.runtime import derive_seed

    cell, block = session.identity.cell, session.params.dictionary
    runtime = session.start_runtime(Path(__file__))
    teacher = open_teacher(session, session.artifact("teacher"), runtime)
    images = torch.from_numpy(open_npy(session.artifact("pool").file("images.npy")).copy())
    batches = image_batches(images, batch_size=PREDICTION_BATCH, device=runtime.device)
    predictions, classes = predict(teacher, batches, space=block.space)
    seed = derive_seed(int(cell["pool_seed"]), "dictionary")
    dictionary = build_dictionary(predictions, num_prototypes=block.num_prototypes, seed=seed)
    assert dictionary.assignments_M is not None
    top_class = [
        int(classes[dictionary.assignments_M == i].mode().values) for i in range(len(dictionary))
    ]
    tensors = {
        "prototypes": dictionary.prototypes_ND,
        "proportions": dictionary.proportions_N,
    }
    facts = {
        "space": block.space,
        "requested": block.num_prototypes,
        "num_prototypes": len(dictionary),
        "dimension": dictionary.prototypes_ND.shape[1],
        "sizes": torch.bincount(dictionary.assignments_M).tolist(),
        "spread": dictionary.spread_N.tolist(),
        "top_class": top_class,
        "num_predictions": len(predictions),
        "teacher": str(cell["teacher"]),
        "num_classes": session.params.data.spec.num_classes,
        "adopted": False,
    }
    _write(session, tensors, facts)


def adopt(session: Session, other: Artifact) -> None:
    """Use another pre-trained model's dictionary, whatever its classes (Table 5)."""
    session.start_runtime(Path(__file__))
    _write(session, other.tensors("dictionary.safetensors"), {**other.facts, "adopted": True})


def _write(session: Session, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    seeds = {"pool_seed": int(session.identity.cell["pool_seed"])}
    with session.new_artifact("dictionary", seeds=seeds) as draft:
        draft.save_tensors("dictionary.safetensors", tensors)
        draft.card["facts"] = facts


STAGES = (
    Stage(
        name="dictionary",
        axes=("teacher", "method", "pool_seed"),
        blocks=("runtime", "data.name", "dictionary"),
        artifact=lambda layout, cell: layout.dictionary(
            str(cell["teacher"]), str(cell["method"]), int(cell["pool_seed"])
        ),
        run=build,
    ),
)

if __name__ == "__main__":
    sys.exit(main(STAGES))
