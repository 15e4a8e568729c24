"""evaluate: score all students of a pair and a method, their snapshots included.

After the teacher this is the only stage that may open original data, and only its test split.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.deconfounding.arms import ARMS
from kdci.store.layout import Cell
from stages._main import main
from stages._pool import open_teacher
from stages._scoring import (
    PARTS,
    Measures,
    ScoredSet,
    Scores,
    classes_of,
    percentages,
    score,
    shift_measures,
)
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.data.datasets.labelled import ImageSet
    from kdci.store.artifacts import Artifact

NUM_EXAMPLES = 24
NUM_OF_A_KIND = 10
"""Of the examples, at most so many that KDCI mends, and as many that it spoils."""
NUM_FRECHET_IMAGES = 10_000
"""Of a larger pool as many random images are compared with real ones."""


def run(session: Session) -> None:
    """Write a row and a learning curve a cell, predictions, pools' shifts, and examples."""
    from kdci.models.students import student_of

    params = session.params
    teacher_artifact = session.parent("teacher")
    own = _open_students(session)
    runtime = session.start_runtime()
    teacher = open_teacher(session, teacher_artifact, runtime)
    test = _test_set(session, teacher)
    holdouts = {
        seed: _holdout_set(session, teacher, seed) for seed in sorted({c.pool_seed for c in own})
    }
    rows, curves = [], []
    main_scores: dict[Cell, Scores] = {}
    for cell in own:
        artifact = session.artifact(cell.name)
        holdout = holdouts[cell.pool_seed]
        student = student_of(artifact)
        on_holdout = score(session, student, holdout)
        on_test = score(session, student, test) if test is not None else None
        points = _curve(session, artifact, test, holdout, finished=(on_test, on_holdout))
        curves.append({**cell.asdict(), "points": points})
        measures = {
            **percentages(on_test, test, "accuracy"),
            **percentages(on_holdout, holdout, "agreement"),
            **shift_measures(on_test, test, params.data.spec.num_classes),
        }
        main_scores[cell] = on_test or on_holdout
        rows.append(_row(session, cell, artifact, measures, main_scores[cell]))
        session.raise_if_stopped()
    main_set = test if test is not None else holdouts[own[0].pool_seed]
    images, examples = _examples(
        main_set, _first_replicate(main_scores), labelled=test is not None, deploy=_deploy(session)
    )
    real = None if test is None else _features(session, teacher, test.images)
    pools = [_pool(session, teacher, real, seed) for seed in holdouts]
    predictions = _predictions(main_scores, test)
    _write(session, rows, curves, pools, predictions, images, examples)


def _deploy(session: Session) -> str:
    return str(session.params.evaluate.deploy)


def _open_students(session: Session) -> list[Cell]:
    """Open the students, and the pools they were distilled on; return the students' cells."""
    own = []
    for role, parent in session.node.parents.items():
        if parent.kind != "teacher":
            session.parent(role)
        cell = session.graph.by_artifact[parent.path].student
        own += [] if cell is None else [cell]
    return own


def _test_set(session: Session, teacher: Any) -> ScoredSet | None:
    from kdci.data.datasets.loading import load_split

    data = session.params.data
    if data.test is None:
        return None
    path = Path(data.path) if data.path else None
    labelled = load_split(data.spec, path=path, split=data.test)
    classes = classes_of(session, teacher, labelled.images)
    return ScoredSet(labelled.images, expected=labelled.labels, teacher=classes)


def _holdout_set(session: Session, teacher: Any, pool_seed: int) -> ScoredSet:
    from kdci.data.bank.mapped_images import MappedImages

    images = MappedImages(session.artifact(f"pool{pool_seed}").file("holdout.npy"))
    classes = classes_of(session, teacher, images)
    return ScoredSet(images, expected=classes, teacher=classes)


def _curve(
    session: Session,
    artifact: Artifact,
    test: ScoredSet | None,
    holdout: ScoredSet,
    *,
    finished: tuple[Scores | None, Scores],
) -> list[dict[str, Any]]:
    """Score every snapshot; the last one is the student itself, whose scores are there.

    `lambda` is the mean lambda_i over held-out substitutes: which prototypes the student leans on.
    """
    from kdci.models.students import snapshot_of

    points = []
    for step, name in artifact.facts["snapshots"]:
        on_test, on_holdout = finished
        if step < artifact.facts["num_steps"]:
            student = snapshot_of(artifact, name)
            on_holdout = score(session, student, holdout)
            on_test = score(session, student, test) if test is not None else None
        weights = on_holdout.weights
        points.append(
            {
                "step": step,
                **percentages(on_test, test, "accuracy"),
                **percentages(on_holdout, holdout, "agreement"),
                "lambda": None if weights is None else weights.tolist(),
            }
        )
    return points


def _row(
    session: Session, cell: Cell, artifact: Artifact, measures: Measures, scores: Scores
) -> dict[str, Any]:
    from kdci.training.evaluation import class_proportions

    params = session.params
    # Only an arm with a module has two predictions to choose from.
    deploy = _deploy(session) if ARMS[cell.variant].compensated else "backbone"
    predicted = scores.backbone.argmax(dim=1)
    proportions = class_proportions(predicted, params.data.spec.num_classes)
    return {
        **cell.asdict(),
        "preset": params.preset,
        "dataset": params.data.name,
        "deploy": deploy,
        "accuracy": measures[f"accuracy_{deploy}"],
        **measures,
        "teacher_accuracy": session.artifact("teacher").facts["accuracy"],
        "num_steps": artifact.facts["num_steps"],
        "budget": artifact.card["params"].get("budget", 1.0),
        "batch_size": artifact.facts["batch_size"],
        "proportions_backbone": proportions.tolist(),
    }


def _pool(session: Session, teacher: Any, real_MD: Tensor | None, pool_seed: int) -> dict[str, Any]:
    """Return how a pool is shifted: class proportions, confidence, distance from real images.

    Args:
        session: The running stage.
        teacher: Frozen.
        real_MD: Its features of the test images; None: there are none.
        pool_seed: Which pool.
    """
    import torch

    from kdci.deconfounding.shift import entropy, frechet_distance, total_variation

    artifact = session.artifact(f"pool{pool_seed}")
    proportions = torch.tensor(artifact.facts["proportions"], dtype=torch.float64)
    distance = None
    if real_MD is not None:
        sample = _sample(artifact.file("images.npy"), pool_seed)
        distance = frechet_distance(_features(session, teacher, sample), real_MD)
    return {
        "pool_seed": pool_seed,
        "total_variation": total_variation(proportions),
        "entropy": entropy(proportions),
        "confidence": artifact.facts["confidence"],
        "teacher_fid": distance,
    }


def _sample(file: Path, pool_seed: int) -> Tensor:
    """Return random images of a pool, at most ``NUM_FRECHET_IMAGES``; the rest stays on disk."""
    import torch

    from kdci.data.bank.mapped_images import MappedImages
    from kdci.training.runtime import generator

    images = MappedImages(file)
    order = torch.randperm(len(images), generator=generator(pool_seed, "teacher-fid"))
    return images[order[:NUM_FRECHET_IMAGES].sort().values]


def _features(session: Session, teacher: Any, images: ImageSet) -> Tensor:
    """Return the teacher's penultimate features of images, (M, D)."""
    from kdci.deconfounding.confounder import predict
    from kdci.training.evaluation import image_batches

    size, device = session.params.evaluate.batch_size, session.runtime.device
    batches = image_batches(images, batch_size=size, device=device)
    return predict(teacher, batches, space="features")[0]


def _predictions(scores: dict[Cell, Scores], test: ScoredSet | None) -> dict[str, Tensor]:
    """Return predicted classes of the test images by `<variant>/<replicate>/<part>`, and labels.

    Students are compared image by image: McNemar's test asks which images only one of two got
    right. Without test data there is nothing to be right about.
    """
    import torch

    if test is None:
        return {}
    found = {"expected": test.expected, "teacher": test.teacher}
    for cell, of_cell in scores.items():
        for part in PARTS:
            classes = of_cell.classes(part)
            if classes is not None:
                found[f"{cell.variant}/{cell.replicate}/{part}"] = classes
    return {name: classes.to(torch.int16) for name, classes in found.items()}


def _first_replicate(scores: dict[Cell, Scores]) -> dict[str, Scores]:
    """Return the scores of the first pool's and seed's students, by variant."""
    first = next(iter(scores))
    return {
        cell.variant: of_cell
        for cell, of_cell in scores.items()
        if (cell.pool_seed, cell.seed) == (first.pool_seed, first.seed)
    }


def _examples(
    on: ScoredSet, shown: dict[str, Scores], *, labelled: bool, deploy: str
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Choose images for the case study: what only KDCI gets right, what only vanilla does, others.

    Where there is no KDCI student, those that the student and the teacher take for different
    classes come first.
    """
    import torch

    vanilla_M = shown["vanilla"].classes("backbone")
    kdci_M = shown["kdci"].classes(deploy) if "kdci" in shown else None
    assert vanilla_M is not None
    if kdci_M is None:
        differ = vanilla_M != on.teacher
        groups = {"differ": differ, "other": ~differ}
    else:
        vanilla_right, kdci_right = vanilla_M == on.expected, kdci_M == on.expected
        gained, lost = kdci_right & ~vanilla_right, vanilla_right & ~kdci_right
        groups = {"gained": gained, "lost": lost, "other": ~gained & ~lost}
    chosen: list[tuple[int, str]] = []
    for name, members in groups.items():
        limit = NUM_OF_A_KIND if name in ("gained", "lost") else NUM_EXAMPLES - len(chosen)
        chosen += [(int(i), name) for i in members.nonzero().flatten()[:limit]]
    examples: list[dict[str, Any]] = [
        {
            "label": int(on.expected[i]) if labelled else None,
            "teacher": int(on.teacher[i]),
            "vanilla": int(vanilla_M[i]),
            "kdci": None if kdci_M is None else int(kdci_M[i]),
            "group": group,
        }
        for i, group in chosen
    ]
    return on.images[torch.tensor([i for i, _ in chosen])], examples


def _write(
    session: Session,
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    pools: list[dict[str, Any]],
    predictions: dict[str, Tensor],
    images: Tensor,
    examples: list[dict[str, Any]],
) -> None:
    from kdci.data.bank.mapped_images import save_npy

    with session.new_artifact("evaluation", seeds={}) as draft:
        draft.save_json("cells.json", rows)
        draft.save_json("curves.json", curves)
        draft.save_json("pools.json", pools)
        if predictions:
            draft.save_tensors("predictions.safetensors", predictions)
        save_npy(images, draft.folder / "examples.npy")
        draft.save_json("examples.json", examples)
        draft.card["facts"] = {
            **session.node.point,
            "num_cells": len(rows),
            "evaluated_on": "test" if predictions else "holdout",
        }


if __name__ == "__main__":
    sys.exit(main("evaluate", run))
