"""Gathers what the report is made from: artifacts of the grid that are in place. Torch-free.

A grid may be half done. What is missing is left out here and named in the report; what is
there is re-hashed first, so a damaged artifact is an error and never a strange figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdci.config.catalog import DatasetSpec
from kdci.deconfounding.arms import ARMS
from kdci.errors import IntegrityError
from kdci.reporting.costs import cost_of, known_number, read_timing
from kdci.reporting.evidence import (
    CurvePoint,
    DictionaryView,
    Evidence,
    Examples,
    Lambdas,
    PoolShift,
    PoolView,
)
from kdci.reporting.results import Key, Row
from kdci.store.artifacts import CARD, REBUILD, Artifact, open_artifact, read_card
from kdci.store.layout import Cell, Layout

_PREDICTIONS = "predictions.safetensors"
"""Absent from an evaluation without test data."""


def gather(
    layout: Layout, wanted: Sequence[Cell], *, spec: DatasetSpec, shifts: Sequence[str] = ()
) -> Evidence:
    """Read every artifact of the ``wanted`` cells that is in place.

    Args:
        layout: Of the experiment.
        wanted: Cells of the grid.
        spec: The dataset.
        shifts: Which of the cells' methods are pools with a known shift.

    Raises:
        IntegrityError: An artifact is damaged or was changed.
    """
    keys = dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in wanted)
    evaluations = [
        open_artifact(folder, kind="evaluation")
        for folder in (layout.evaluation(*key) for key in keys)
        if _is_there(folder)
    ]
    pools = list(dict.fromkeys((cell.teacher, cell.method, cell.pool_seed) for cell in wanted))
    teachers = {cell.teacher: layout.teacher(cell.teacher) for cell in wanted}
    students = {
        cell: read_card(folder, kind="student")
        for cell in wanted
        if _is_there(folder := layout.student(cell))
    }
    timings = {cell: read_timing(layout.timing(layout.student(cell))) for cell in wanted}
    budgets = {cell: _budget(card) for cell, card in students.items()}
    known = set(wanted)  # the grid may have lost cells since they were evaluated
    curves = {
        cell: curve["points"]
        for artifact in evaluations
        for curve in artifact.json("curves.json")
        if (cell := Cell.of(curve)) in known
    }
    return Evidence(
        preset=layout.preset,
        spec=spec,
        wanted=wanted,
        rows=_rows(wanted, evaluations, timings, budgets),
        teachers={
            name: read_card(folder, kind="teacher")["facts"]
            for name, folder in teachers.items()
            if _is_there(folder)
        },
        pools=[pool_view(layout, *key) for key in pools if _is_there(layout.pool(*key))],
        dictionaries=[
            dictionary_view(layout, *key) for key in pools if _is_there(layout.dictionary(*key))
        ],
        students=students,
        points=[
            point
            for cell, curve in curves.items()
            for point in _curve_points(cell, curve, budgets.get(cell, 1.0))
        ],
        examples=[_examples(artifact) for artifact in evaluations],
        evaluation_cards=[artifact.card for artifact in evaluations],
        shifts=shifts,
        pool_shifts=_pool_shifts(pools, evaluations),
        predictions={
            _key(artifact): _arrays(artifact, _PREDICTIONS)
            for artifact in evaluations
            if _PREDICTIONS in artifact.card["files"]
        },
        lambdas=_lambdas(wanted, curves),
        costs={
            cell: cost
            for cell, card in students.items()
            if (cost := cost_of(card, timings[cell])) is not None
        },
    )


def _is_there(folder: Path) -> bool:
    return (folder / CARD).is_file()


def _key(evaluation: Artifact) -> Key:
    facts = evaluation.facts
    return (facts["teacher"], facts["student"], facts["method"])


def _rows(
    wanted: Iterable[Cell],
    evaluations: Iterable[Artifact],
    timings: Mapping[Cell, Mapping[str, Any]],
    budgets: Mapping[Cell, float],
) -> list[Row]:
    """Return rows in the order of the grid; a cell that the grid no longer has is left out."""
    found = {
        Cell.of(values): values
        for artifact in evaluations
        for values in artifact.json("cells.json")
    }
    return [
        Row.from_json(
            found[cell],
            seconds=known_number(timings[cell], "loop_seconds"),
            # The scored student's; scores of before it was noted are of the student in place.
            budget=found[cell].get("budget", budgets.get(cell, 1.0)),
        )
        for cell in wanted
        if cell in found
    ]


def _budget(card: Mapping[str, Any]) -> float:
    """Return the budget a student was made with; cards of before there was one have none."""
    return float(card.get("params", {}).get("budget", 1.0))


def pool_view(layout: Layout, teacher: str, method: str, pool_seed: int) -> PoolView:
    """Read a pool as figures show it.

    Raises:
        UserError: There is none.
        IntegrityError: It is damaged.
    """
    artifact = open_artifact(layout.pool(teacher, method, pool_seed), kind="pool")
    logits_MK = _arrays(artifact, "predictions.safetensors")["logits"].astype(np.float64)
    odds_MK = np.exp(logits_MK - logits_MK.max(axis=1, keepdims=True))
    return PoolView(
        teacher=teacher,
        method=method,
        pool_seed=pool_seed,
        images=np.load(artifact.file("images.npy"), mmap_mode="r", allow_pickle=False),
        top_class=logits_MK.argmax(axis=1),
        confidence=1 / odds_MK.sum(axis=1),
        facts=artifact.facts,
    )


def dictionary_view(layout: Layout, teacher: str, method: str, pool_seed: int) -> DictionaryView:
    """Read a dictionary as figures and tables show it.

    Raises:
        UserError: There is none.
        IntegrityError: It is damaged.
    """
    artifact = open_artifact(layout.dictionary(teacher, method, pool_seed), kind="dictionary")
    arrays = _arrays(artifact, "dictionary.safetensors")
    prototypes, proportions = arrays["prototypes"], arrays["proportions"]
    return DictionaryView(teacher, method, pool_seed, prototypes, proportions, artifact.facts)


def _arrays(artifact: Artifact, name: str) -> dict[str, NDArray[Any]]:
    """Read a safetensors file as arrays, so that a report never waits for torch to load."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return dict(load(artifact.file(name).read_bytes()))
    except (SafetensorError, ValueError, KeyError):
        raise IntegrityError(str(artifact.path / name), "is damaged", REBUILD) from None


def _curve_points(
    cell: Cell, curve: Iterable[Mapping[str, Any]], budget: float
) -> Iterator[CurvePoint]:
    compensated = ARMS[cell.variant].compensated
    for point in curve:
        for part in ("backbone", "compensated") if compensated else ("backbone",):
            yield CurvePoint(
                step=point["step"],
                accuracy=point[f"accuracy_{part}"],
                agreement=point[f"agreement_{part}"],
                method=cell.method,
                variant=f"{cell.variant} {part}" if compensated else cell.variant,
                teacher=cell.teacher,
                student=cell.student,
                replicate=cell.replicate,
                budget=budget,
            )


def _lambdas(
    wanted: Iterable[Cell], curves: Mapping[Cell, Sequence[Mapping[str, Any]]]
) -> dict[Cell, Lambdas]:
    """Return what each student weighs; vanilla, and lambda drawn at random, say nothing."""
    found = {
        cell: [(p["step"], p["lambda"]) for p in curves[cell] if p.get("lambda") is not None]
        for cell in wanted
        if cell in curves
    }
    return {cell: points for cell, points in found.items() if points}


def _examples(artifact: Artifact) -> Examples:
    return Examples(
        *_key(artifact),
        images=np.load(artifact.file("examples.npy"), allow_pickle=False),
        predictions=artifact.json("examples.json"),
        evaluated_on=artifact.facts["evaluated_on"],
    )


def _pool_shifts(
    wanted: Sequence[tuple[str, str, int]], evaluations: Iterable[Artifact]
) -> list[PoolShift]:
    """Return each pool's shift once: the evaluations of several students tell of the same pool."""
    found: dict[tuple[str, str, int], PoolShift] = {}
    for artifact in evaluations:
        pools = artifact.json("pools.json") if "pools.json" in artifact.card["files"] else []
        for values in pools:
            shift = PoolShift(artifact.facts["teacher"], artifact.facts["method"], **values)
            found[shift.key] = shift
    return [found[key] for key in wanted if key in found]
