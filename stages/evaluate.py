"""evaluate: score all students of a pair and a method, their snapshots included.

After the teacher this is the only stage that may open original data, and only its test split.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.layout import Cell, all_cells
from stages._main import Stage, main
from stages._pool import open_teacher
from stages._session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from kdci.artifacts import Artifact
    from kdci.runtime import Runtime
    from kdci.students import Student

NUM_EXAMPLES = 24


@dataclass(frozen=True)
class ScoredSet:
    """Images students are scored on: test images with labels, or held-out substitutes.

    Attributes:
        images: uint8 (M, C, H, W).
        expected: Labels, or the teacher's classes; (M,).
        teacher: The teacher's classes; (M,).
    """

    images: Tensor
    expected: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class Scores:
    """Predicted classes of one student, by backbone and compensated (None: vanilla)."""

    backbone: Tensor
    compensated: Tensor | None


def evaluate(session: Session) -> None:
    """Write one row and one learning curve a cell, and examples for the figure."""
    from kdci.students import student_of

    layout, params = session.layout, session.params
    axes = session.identity.cell
    teacher_artifact = session.parent("teacher", layout.teacher(str(axes["teacher"])))
    own = [
        cell
        for cell in all_cells(params.grid)
        if (cell.teacher, cell.student, cell.method) == tuple(axes.values())
    ]
    runtime = _open_students(session, own)
    teacher = open_teacher(session, teacher_artifact, runtime)
    test = _test_set(session, teacher)
    holdouts = {
        seed: _holdout_set(session, teacher, seed) for seed in sorted({c.pool_seed for c in own})
    }
    rows, curves = [], []
    shown: dict[tuple[int, int], dict[str, Scores]] = {}
    for cell in own:
        artifact = session.artifact(cell.name)
        holdout = holdouts[cell.pool_seed]
        points = _curve(session, artifact, test, holdout)
        curves.append({**cell.asdict(), "points": points})
        student = student_of(artifact)
        main_set = test if test is not None else holdout
        scores = _scores(session, student, main_set)
        shown.setdefault((cell.pool_seed, cell.seed), {})[cell.variant] = scores
        measures = _measures(session, student, test, holdout)
        rows.append(_row(session, cell, artifact, measures, scores))
        session.raise_if_stopped()
    first_pool, _ = first = next(iter(shown))
    images, examples = _examples(
        test if test is not None else holdouts[first_pool], shown[first], labelled=test is not None
    )
    _write(session, rows, curves, images, examples, evaluated_on="test" if test else "holdout")


def _open_students(session: Session, own: list[Cell]) -> Runtime:
    for cell in own:
        session.parent(cell.name, session.layout.student(cell), kind="student")
    for pool_seed in sorted({cell.pool_seed for cell in own}):
        path = session.layout.pool(own[0].teacher, own[0].method, pool_seed)
        session.parent(f"pool{pool_seed}", path, kind="pool")
    return session.start_runtime(Path(__file__))


def _test_set(session: Session, teacher: Any) -> ScoredSet | None:
    from kdci.data.datasets import load_split

    data = session.params.data
    if data.test is None:
        return None
    path = Path(data.path) if data.path else None
    labelled = load_split(data.name, path=path, split=data.test)
    classes = _classes(session, lambda images: teacher(images).logits, labelled.images)
    return ScoredSet(labelled.images, expected=labelled.labels, teacher=classes)


def _holdout_set(session: Session, teacher: Any, pool_seed: int) -> ScoredSet:
    import torch

    from kdci.data.image_bank import open_npy

    file = session.artifact(f"pool{pool_seed}").file("holdout.npy")
    images = torch.from_numpy(open_npy(file).copy())
    classes = _classes(session, lambda batch: teacher(batch).logits, images)
    return ScoredSet(images, expected=classes, teacher=classes)


def _classes(session: Session, logits_of: Any, images: Tensor) -> Tensor:
    from kdci.evaluation import predict_classes

    size = session.params.evaluate.batch_size
    return predict_classes(logits_of, images, batch_size=size, device=session.runtime.device)


def _scores(session: Session, student: Student, on: ScoredSet) -> Scores:
    """Predict with f_S and with phi(f_S, F(z)), in one pass over the images."""
    import torch

    from kdci.evaluation import predict_logits

    device, size = session.runtime.device, session.params.evaluate.batch_size
    student = student.to(device)
    student.backbone.autocast_dtype = session.runtime.autocast_dtype
    student.deploy = "backbone"
    logits = predict_logits(student, on.images, batch_size=size, device=device)
    compensated = None
    if student.compensation is not None:
        with torch.no_grad():
            compensated = student.compensated(logits.to(device)).argmax(dim=1).cpu()
    return Scores(logits.argmax(dim=1), compensated)


def _curve(
    session: Session, artifact: Artifact, test: ScoredSet | None, holdout: ScoredSet
) -> list[dict[str, float | None]]:
    """Score every snapshot; the last one is the student itself."""
    from kdci.students import snapshot_of

    points = []
    for step, name in artifact.facts["snapshots"]:
        values = _measures(session, snapshot_of(artifact, name), test, holdout)
        points.append({"step": step, **values})
    return points


def _measures(
    session: Session, student: Student, test: ScoredSet | None, holdout: ScoredSet
) -> dict[str, float | None]:
    on_test = _percentages(session, student, test)
    on_holdout = _percentages(session, student, holdout)
    return {
        "accuracy_backbone": on_test[0],
        "accuracy_compensated": on_test[1],
        "agreement_backbone": on_holdout[0],
        "agreement_compensated": on_holdout[1],
    }


def _percentages(
    session: Session, student: Student, on: ScoredSet | None
) -> tuple[float | None, float | None]:
    from kdci.evaluation import match_percentage

    if on is None:
        return None, None
    scores = _scores(session, student, on)
    compensated = scores.compensated
    return (
        match_percentage(scores.backbone, on.expected),
        None if compensated is None else match_percentage(compensated, on.expected),
    )


def _row(
    session: Session,
    cell: Cell,
    artifact: Artifact,
    measures: dict[str, float | None],
    scores: Scores,
) -> dict[str, Any]:
    from kdci.evaluation import class_proportions

    params = session.params
    deploy = params.evaluate.deploy if cell.variant == "kdci" else "backbone"
    proportions = class_proportions(scores.backbone, params.data.spec.num_classes)
    return {
        **cell.asdict(),
        "preset": params.preset,
        "dataset": params.data.name,
        "deploy": deploy,
        "accuracy": measures[f"accuracy_{deploy}"],
        **measures,
        "teacher_accuracy": session.artifact("teacher").facts["accuracy"],
        "num_steps": artifact.facts["num_steps"],
        "batch_size": artifact.facts["batch_size"],
        "proportions_backbone": proportions.tolist(),
    }


def _examples(
    on: ScoredSet, shown: dict[str, Scores], *, labelled: bool
) -> tuple[Tensor, list[dict[str, int | None]]]:
    """Choose images for the figure: first where the two students differ, then from the start.

    Where there is one student alone, first those where it and the teacher differ.
    """
    import torch

    vanilla_M = shown["vanilla"].backbone
    kdci_M = shown["kdci"].backbone if "kdci" in shown else None  # a control has none
    differ = vanilla_M != (on.teacher if kdci_M is None else kdci_M)
    order = torch.cat([differ.nonzero().flatten(), (~differ).nonzero().flatten()])
    chosen = order[:NUM_EXAMPLES]
    examples = [
        {
            "label": int(on.expected[i]) if labelled else None,
            "teacher": int(on.teacher[i]),
            "vanilla": int(vanilla_M[i]),
            "kdci": None if kdci_M is None else int(kdci_M[i]),
        }
        for i in chosen.tolist()
    ]
    return on.images[chosen], examples


def _write(
    session: Session,
    rows: list[dict[str, Any]],
    curves: list[dict[str, Any]],
    images: Tensor,
    examples: list[dict[str, int | None]],
    *,
    evaluated_on: str,
) -> None:
    from kdci.data.image_bank import save_npy

    with session.new_artifact("evaluation", seeds={}) as draft:
        draft.save_json("cells.json", rows)
        draft.save_json("curves.json", curves)
        save_npy(images, draft.folder / "examples.npy")
        draft.save_json("examples.json", examples)
        draft.card["facts"] = {
            **session.identity.cell,
            "num_cells": len(rows),
            "evaluated_on": evaluated_on,
        }


STAGES = (
    Stage(
        name="evaluate",
        axes=("teacher", "student", "method"),
        blocks=("runtime", "data", "evaluate", "grid.pool_seeds", "grid.seeds"),
        artifact=lambda layout, cell: layout.evaluation(
            str(cell["teacher"]), str(cell["student"]), str(cell["method"])
        ),
        run=evaluate,
    ),
)

if __name__ == "__main__":
    sys.exit(main(STAGES))
