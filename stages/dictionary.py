"""dictionary: cluster the teacher's predictions on the pool into the confounder dictionary."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.store.artifacts import Artifact


def run(session: Session) -> None:
    """Build the cell's own dictionary, or adopt another teacher's (`dictionary.artifact`)."""
    teacher, pool = session.parent("teacher"), session.parent("pool")
    if "dictionary" in session.node.parents:
        _adopt(session, session.parent("dictionary"))
    else:
        _build(session, teacher, pool)


def _build(session: Session, teacher_artifact: Artifact, pool: Artifact) -> None:
    from kdci.data.bank.mapped_images import MappedImages
    from kdci.deconfounding.confounder import PoolPredictions, build_dictionary_by_batches
    from kdci.deconfounding.dictionary_quality import quality
    from kdci.models.networks import Networks
    from kdci.training.evaluation import PREDICTION_BATCH, image_batches
    from kdci.training.runtime import derive_seed

    point, spec, block = session.node.point, session.params.data.spec, session.params.dictionary
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    teacher = networks.teacher(teacher_artifact, spec)
    images, device = MappedImages(pool.file("images.npy")), networks.runtime.device
    passes = partial(image_batches, images, batch_size=PREDICTION_BATCH, device=device)
    predictions = PoolPredictions(teacher, passes, num_rows=len(images), space=block.space)
    dictionary = build_dictionary_by_batches(
        predictions,
        num_rows=len(images),
        num_prototypes=block.num_prototypes,
        seed=derive_seed(int(point["pool_seed"]), "dictionary"),
    )
    assert dictionary.assignments_M is not None
    tensors = {
        "prototypes": dictionary.prototypes_ND,
        "proportions": dictionary.proportions_N,
        "assignments": dictionary.assignments_M.int(),
    }
    facts = {
        "space": block.space,
        "requested": block.num_prototypes,
        "num_prototypes": len(dictionary),
        "dimension": dictionary.prototypes_ND.shape[1],
        "num_predictions": len(images),
        "teacher": str(point["teacher"]),
        "num_classes": spec.num_classes,
        "adopted": False,
        **quality(dictionary, predictions.classes_M, num_classes=spec.num_classes),
    }
    _write(session, tensors, facts)


def _adopt(session: Session, other: Artifact) -> None:
    """Use another pre-trained model's dictionary, whatever its classes (Table 5)."""
    session.start_runtime()
    _write(session, other.tensors("dictionary.safetensors"), {**other.facts, "adopted": True})


def _write(session: Session, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    from kdci.deconfounding.confounder import dictionary_hash

    seeds = {"pool_seed": int(session.node.point["pool_seed"])}
    stated = dictionary_hash(tensors["prototypes"], tensors["proportions"])
    with session.new_artifact("dictionary", seeds=seeds) as draft:
        draft.save_tensors("dictionary.safetensors", tensors)
        draft.card["facts"] = {**facts, "dictionary_hash": stated}


if __name__ == "__main__":
    sys.exit(main("dictionary", run))
