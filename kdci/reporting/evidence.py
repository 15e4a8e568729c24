"""What the report is made from, as plain values. Torch-free; ``gather`` reads it from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdci.catalog import DatasetSpec
from kdci.layout import Cell
from kdci.reporting.results import Key, Row

SERIES = ("vanilla", "kdci backbone", "kdci compensated")
"""The three learning curves of a method."""


@dataclass(frozen=True)
class PoolView:
    """A substitution pool (M images, K classes).

    Attributes:
        images: uint8 (M, C, H, W), memory-mapped.
        top_class: The teacher's class of each image, (M,).
        confidence: The teacher's probability of that class, (M,).
        facts: Of the card: proportions [K], confidence, missing_classes, num_images,
            num_open_world (images at the start that were chosen and not made).
    """

    teacher: str
    method: str
    pool_seed: int
    images: NDArray[np.uint8]
    top_class: NDArray[np.int64]
    confidence: NDArray[np.float64]
    facts: dict[str, Any]

    @property
    def proportions(self) -> NDArray[np.float64]:
        """Share of each class by the teacher's argmax, (K,)."""
        return np.asarray(self.facts["proportions"], dtype=np.float64)

    @property
    def num_made(self) -> int:
        """How many images, the last ones, were synthesised; in the order they were."""
        return len(self.images) - int(self.facts["num_open_world"])

    @property
    def total_variation(self) -> float:
        """Distance of the class proportions from uniform, 0 (balanced) to 1 - 1/K."""
        return float(np.abs(self.proportions - 1 / len(self.proportions)).sum() / 2)


@dataclass(frozen=True)
class DictionaryView:
    """A confounder dictionary.

    Attributes:
        prototypes: z_i, (N, D).
        proportions: P(z_i), (N,).
        facts: Of the card: space, requested, top_class [N], num_predictions.
    """

    teacher: str
    method: str
    pool_seed: int
    prototypes: NDArray[np.float32]
    proportions: NDArray[np.float32]
    facts: dict[str, Any]


@dataclass(frozen=True)
class CurvePoint:
    """A student at one step: ``report/curves.csv`` in long form.

    Attributes:
        variant: One of ``SERIES``.
    """

    step: int
    accuracy: float | None
    agreement: float | None
    method: str
    variant: str
    teacher: str
    student: str
    replicate: str


@dataclass(frozen=True)
class Examples:
    """Images with the classes predicted for them.

    Attributes:
        images: uint8 (E, C, H, W).
        predictions: One a image: label (or null), teacher, vanilla, kdci (or null).
        evaluated_on: `test` or `holdout`.
    """

    teacher: str
    student: str
    method: str
    images: NDArray[np.uint8]
    predictions: list[dict[str, int | None]]
    evaluated_on: str


@dataclass(frozen=True)
class Evidence:
    """All that the report says something about.

    Attributes:
        preset: Name of the experiment.
        spec: The dataset.
        wanted: Every cell of the grid, run or not.
        rows: Results of the cells that were evaluated, in the order of the grid.
        teachers: Facts by name.
        students: Cards by cell.
        evaluation_cards: Cards of the evaluations.
    """

    preset: str
    spec: DatasetSpec
    wanted: Sequence[Cell]
    rows: list[Row]
    teachers: dict[str, dict[str, Any]]
    pools: list[PoolView]
    dictionaries: list[DictionaryView]
    students: dict[Cell, dict[str, Any]]
    points: list[CurvePoint]
    examples: list[Examples]
    evaluation_cards: list[dict[str, Any]]

    @property
    def keys(self) -> list[Key]:
        """Teacher, student and method of every comparison of the grid."""
        return list(
            dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in self.wanted)
        )

    @property
    def not_run(self) -> list[Cell]:
        """Cells of the grid without an evaluation."""
        done = {(*row.key, row.variant, *row.replicate) for row in self.rows}
        return [cell for cell in self.wanted if astuple(cell) not in done]
