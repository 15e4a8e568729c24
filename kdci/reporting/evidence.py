"""What the report is made from, as plain values. Torch-free; ``gather`` reads it from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdci.config.catalog import DatasetSpec
from kdci.reporting.costs import Cost
from kdci.reporting.results import Key, Part, Row
from kdci.reporting.statistics import Discordant, mcnemar
from kdci.store.layout import Cell

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
        facts: Of the card: space, requested, top_class [N], num_predictions, and what
            ``kdci.deconfounding.dictionary_quality.quality`` states.
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
        budget: Of the student.
    """

    step: int
    accuracy: float | None
    agreement: float | None
    method: str
    variant: str
    teacher: str
    student: str
    replicate: str
    budget: float = 1.0


@dataclass(frozen=True)
class LambdaCurve:
    """What a compensated student weighs the prototypes with, while it learns.

    Attributes:
        points: Steps, with the mean of each lambda_i over held-out substitutes, (N,).
    """

    teacher: str
    student: str
    method: str
    variant: str
    replicate: str
    points: list[tuple[int, list[float]]]


@dataclass(frozen=True)
class Examples:
    """Images with the classes predicted for them.

    Attributes:
        images: uint8 (E, C, H, W).
        predictions: One a image: label (or null), teacher, vanilla, kdci (or null), and the
            group it was chosen for: `gained` (only KDCI right), `lost` (only vanilla right),
            `differ` (there is no KDCI student; vanilla and the teacher differ), `other`.
        evaluated_on: `test` or `holdout`.
    """

    teacher: str
    student: str
    method: str
    images: NDArray[np.uint8]
    predictions: list[dict[str, Any]]
    evaluated_on: str


@dataclass(frozen=True)
class PoolShift:
    """How far a substitution pool is shifted, by the teacher's predictions on it.

    Attributes:
        total_variation: Of the class proportions from uniform, 0 to 1 - 1/K.
        entropy: Of the class proportions, in nats; log K if all classes are even.
        confidence: Mean probability of the predicted class.
        teacher_fid: Frechet distance from the test images in the teacher's features; null
            without test data.
    """

    teacher: str
    method: str
    pool_seed: int
    total_variation: float
    entropy: float
    confidence: float
    teacher_fid: float | None


@dataclass(frozen=True)
class PredictedClasses:
    """What the students of a pair and a method take the test images for (M images).

    Attributes:
        classes: `expected`, the labels, and `<variant>/<replicate>/<part>`; (M,) each.
    """

    teacher: str
    student: str
    method: str
    classes: dict[str, NDArray[np.int16]]

    def discordant(self, arm: str, replicate: str, part: Part) -> Discordant | None:
        """Compare an arm's student with its vanilla twin; null if one is not there."""
        vanilla = self.classes.get(f"vanilla/{replicate}/backbone")
        other = self.classes.get(f"{arm}/{replicate}/{part}")
        if vanilla is None or other is None:
            return None
        return mcnemar(self.classes["expected"], vanilla, other)


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
        shifts: Pools with a known shift, which cells name as their `method`.
        pool_shifts: Of the pools that were evaluated on.
        predictions: Of the evaluations that had test images.
        lambdas: Of the students with a learned lambda, in the order of the grid.
        costs: Of the students whose times were kept, by cell.
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
    shifts: Sequence[str] = ()
    pool_shifts: list[PoolShift] = field(default_factory=list)
    predictions: list[PredictedClasses] = field(default_factory=list)
    lambdas: list[LambdaCurve] = field(default_factory=list)
    costs: dict[Cell, Cost] = field(default_factory=dict)

    @property
    def budgets(self) -> list[float]:
        """Budgets of the results, in their order; the whole where there are none."""
        return list(dict.fromkeys(row.budget for row in self.rows)) or [1.0]

    def of_budget(self, budget: float) -> Evidence:
        """Return the same with the results and curves of one budget alone."""
        return replace(
            self,
            rows=[row for row in self.rows if row.budget == budget],
            points=[point for point in self.points if point.budget == budget],
        )

    @property
    def keys(self) -> list[Key]:
        """Teacher, student and method of every comparison of the grid; known shifts are none."""
        cells = (cell for cell in self.wanted if cell.method not in self.shifts)
        return list(dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in cells))

    @property
    def method_rows(self) -> list[Row]:
        """Results on the pools of methods and controls."""
        return [row for row in self.rows if row.method not in self.shifts]

    @property
    def shift_rows(self) -> list[Row]:
        """Results on the pools with a known shift."""
        return [row for row in self.rows if row.method in self.shifts]

    def proportions_of(self, curve: LambdaCurve) -> NDArray[np.float32] | None:
        """Return P(z) of the dictionary a student ended with; null where that is not known."""

        def key(student: Cell | LambdaCurve) -> tuple[str, ...]:
            pair = (student.teacher, student.student, student.method)
            return (*pair, student.variant, student.replicate)

        cell = next((cell for cell in self.students if key(cell) == key(curve)), None)
        if cell is None or self.students[cell]["facts"].get("rebuilt"):
            return None  # one that was built anew on the way has more images than the pool
        pool = (cell.teacher, cell.method, cell.pool_seed)
        for view in self.dictionaries:
            if (view.teacher, view.method, view.pool_seed) == pool:
                return view.proportions
        return None

    @property
    def not_run(self) -> list[Cell]:
        """Cells of the grid without an evaluation."""
        done = {(*row.key, row.variant, *row.replicate) for row in self.rows}
        return [cell for cell in self.wanted if astuple(cell) not in done]

    def row_of(self, cell: Cell) -> Row | None:
        """Return a cell's result; null where it was not run."""
        identity = astuple(cell)
        found = (row for row in self.rows if (*row.key, row.variant, *row.replicate) == identity)
        return next(found, None)

    def discordant(self, cell: Cell) -> Discordant | None:
        """Compare a cell's deployed prediction with its vanilla twin's, image by image.

        Null without test images, or where one of the two was not run, or at another budget.
        """
        row, twin = self.row_of(cell), self.row_of(replace(cell, variant="vanilla"))
        if row is None or (twin is not None and twin.budget != row.budget):
            return None
        for one in self.predictions:
            if (one.teacher, one.student, one.method) == row.key:
                return one.discordant(cell.variant, cell.replicate, row.deployed)
        return None
