"""evaluate: score all students of a pair and a method, their snapshots included.

After the teacher this is the only stage that may open original data, and only its test split.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.catalog import stem_for
from kdci.config.params import Params
from kdci.deconfounding.arms import ARMS
from kdci.store.layout import Cell
from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from kdci.data.datasets.labelled import ImageSet
    from kdci.models import PixelModel
    from kdci.models.students import Student
    from kdci.store.artifacts import Artifact
    from kdci.training.scoring import Measures, ScoredSet, Scores

    Score = Callable[[Student, ImageSet], Scores]
    TwoScores = tuple[Scores | None, Scores]

NUM_FRECHET_IMAGES = 10_000
"""Of a larger pool as many random images are compared with real ones."""


def run(session: Session) -> None:
    """Write a row and a learning curve a cell, predictions, pools' shifts, and examples."""
    from kdci.data.bank.mapped_images import MappedImages
    from kdci.data.datasets.loading import load_split
    from kdci.models.networks import Networks
    from kdci.models.students import student_of
    from kdci.training.examples import choose_examples
    from kdci.training.scoring import ScoredSet, percentages, score, shift_measures

    params, data, block = session.params, session.params.data, session.params.evaluate
    spec, student_name = data.spec, str(session.node.point["student"])
    stem = stem_for(params.backbone.stem, spec.image_size)
    teacher_artifact = session.parent("teacher")
    students = {cell: session.parent(cell.name) for cell in _cells(session)}
    pools = {
        seed: session.parent(f"pool{seed}") for seed in sorted({c.pool_seed for c in students})
    }
    networks = Networks(session.start_runtime(), session.layout.formats, session.note_format)
    teacher = networks.teacher(teacher_artifact, spec)
    on_images = partial(ScoredSet.of_teacher, teacher, batch_size=block.batch_size)
    path = Path(data.path) if data.path else None
    labelled = load_split(spec, path=path, split=data.test) if data.test else None
    test = None if labelled is None else on_images(labelled.images, labelled.labels)
    holdouts = {
        seed: on_images(MappedImages(pool.file("holdout.npy"))) for seed, pool in pools.items()
    }
    chosen = networks.format_of(student_name, spec, stem=stem, training=False)
    device = networks.runtime.device
    scored = partial(score, chosen=chosen, device=device, batch_size=block.batch_size)
    rows, curves = [], []
    main_scores: dict[Cell, Scores] = {}
    for cell, artifact in students.items():
        holdout = holdouts[cell.pool_seed]
        finished = _scores(scored, student_of(artifact), test, holdout)
        on_test, on_holdout = finished
        points = _curve(scored, artifact, test, holdout, finished)
        curves.append({**cell.asdict(), "points": points})
        measures = {
            **percentages(on_test, test, "accuracy"),
            **percentages(on_holdout, holdout, "agreement"),
            **shift_measures(on_test, test, spec.num_classes),
        }
        main_scores[cell] = on_test or on_holdout
        row = _row(cell, artifact, measures, main_scores[cell], params)
        rows.append({**row, "teacher_accuracy": teacher_artifact.facts["accuracy"]})
        session.raise_if_stopped()
    images, examples = choose_examples(
        test or holdouts[next(iter(students)).pool_seed],
        _first_replicate(main_scores),
        labelled=test is not None,
        deploy=block.deploy,
    )
    features = partial(_features, teacher, device=device, batch_size=block.batch_size)
    real = None if test is None else features(test.images)
    shifts = [_pool_shift(seed, pool, real, features) for seed, pool in pools.items()]
    _write(session, rows, curves, shifts, _predictions(main_scores, test), images, examples)


def _cells(session: Session) -> list[Cell]:
    """Return the students that it is made from."""
    nodes = (session.graph.by_artifact[parent.path] for parent in session.node.parents.values())
    return [node.student for node in nodes if node.student is not None]


def _scores(
    scored: Score, student: Student, test: ScoredSet | None, holdout: ScoredSet
) -> TwoScores:
    """Score a student on the test images, if there are any, and on its pool's held-out ones."""
    on_holdout = scored(student, holdout.images)
    return None if test is None else scored(student, test.images), on_holdout


def _curve(
    scored: Score,
    artifact: Artifact,
    test: ScoredSet | None,
    holdout: ScoredSet,
    finished: TwoScores,
) -> list[dict[str, Any]]:
    """Score every snapshot; the last one is the student itself, whose scores are there.

    `lambda` is the mean lambda_i over held-out substitutes: which prototypes the student leans on.
    """
    from kdci.models.students import snapshot_of
    from kdci.training.scoring import percentages

    points = []
    for step, name in artifact.facts["snapshots"]:
        on_test, on_holdout = finished
        if step < artifact.facts["num_steps"]:
            on_test, on_holdout = _scores(scored, snapshot_of(artifact, name), test, holdout)
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
    cell: Cell, artifact: Artifact, measures: Measures, scores: Scores, params: Params
) -> dict[str, Any]:
    from kdci.training.evaluation import class_proportions

    # Only an arm with a module has two predictions to choose from.
    deploy = params.evaluate.deploy if ARMS[cell.variant].compensated else "backbone"
    predicted = scores.backbone.argmax(dim=1)
    proportions = class_proportions(predicted, params.data.spec.num_classes)
    return {
        **cell.asdict(),
        "preset": params.preset,
        "dataset": params.data.name,
        "deploy": deploy,
        "accuracy": measures[f"accuracy_{deploy}"],
        **measures,
        "num_steps": artifact.facts["num_steps"],
        "budget": artifact.card["params"].get("budget", 1.0),
        "batch_size": artifact.facts["batch_size"],
        "proportions_backbone": proportions.tolist(),
    }


def _pool_shift(
    pool_seed: int,
    pool: Artifact,
    real_MD: Tensor | None,
    features: Callable[[ImageSet], Tensor],
) -> dict[str, Any]:
    """Return how a pool is shifted: class proportions, confidence, distance from real images.

    ``real_MD`` are the teacher's features of the test images; None: there are none.
    """
    import torch

    from kdci.data.bank.mapped_images import MappedImages
    from kdci.deconfounding.shift import entropy, frechet_distance, total_variation
    from kdci.training.runtime import generator

    proportions = torch.tensor(pool.facts["proportions"], dtype=torch.float64)
    distance = None
    if real_MD is not None:
        # At most so many, random ones; the rest stays on disk.
        images = MappedImages(pool.file("images.npy"))
        order = torch.randperm(len(images), generator=generator(pool_seed, "teacher-fid"))
        sample = images[order[:NUM_FRECHET_IMAGES].sort().values]
        distance = frechet_distance(features(sample), real_MD)
    return {
        "pool_seed": pool_seed,
        "total_variation": total_variation(proportions),
        "entropy": entropy(proportions),
        "confidence": pool.facts["confidence"],
        "teacher_fid": distance,
    }


def _features(
    teacher: PixelModel, images: ImageSet, *, device: torch.device, batch_size: int
) -> Tensor:
    """Return the teacher's penultimate features of images, (M, D)."""
    from kdci.deconfounding.confounder import predict
    from kdci.training.evaluation import image_batches

    batches = image_batches(images, batch_size=batch_size, device=device)
    return predict(teacher, batches, space="features")[0]


def _predictions(scores: dict[Cell, Scores], test: ScoredSet | None) -> dict[str, Tensor]:
    """Return predicted classes of the test images by `<variant>/<replicate>/<part>`, and labels.

    Students are compared image by image: McNemar's test asks which images only one of two got
    right. Without test data there is nothing to be right about.
    """
    import torch

    from kdci.training.scoring import PARTS

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
