"""What the report is made from, as plain values. Torch-free; ``gather`` reads it from disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdci.config.catalog import DatasetSpec
from kdci.reporting.costs import Cost
from kdci.reporting.results import Key, Measure, Row
from kdci.reporting.statistics import Discordant, mcnemar
from kdci.store.layout import Cell
from kdci.substitution.registry import title_of

SERIES = ("vanilla", "kdci backbone", "kdci compensated")
"""The three learning curves of a method."""


@dataclass(frozen=True)
class OfPool:
    """Something about a substitution pool."""

    teacher: str
    method: str
    pool_seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Teacher, method and pool seed."""
        return (self.teacher, self.method, self.pool_seed)

    @property
    def title(self) -> str:
        """What tables and figures call the pool, beside its teacher."""
        return f"{title_of(self.method)}, pool {self.pool_seed}"


@dataclass(frozen=True)
class PoolView(OfPool):
    """A substitution pool (M images, K classes).

    Attributes:
        images: uint8 (M, C, H, W), memory-mapped.
        top_class: The teacher's class of each image, (M,).
        confidence: The teacher's probability of that class, (M,).
        facts: Of the card: proportions [K], confidence, missing_classes, num_images,
            num_open_world (images at the start that were chosen and not made).
    """

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
class DictionaryView(OfPool):
    """A confounder dictionary.

    Attributes:
        prototypes: z_i, (N, D).
        proportions: P(z_i), (N,).
        facts: Of the card: space, requested, top_class [N], num_predictions, and what
            ``kdci.deconfounding.dictionary_quality.quality`` states.
    """

    prototypes: NDArray[np.float32]
    proportions: NDArray[np.float32]
    facts: dict[str, Any]

    @property
    def adopted(self) -> bool:
        """Whether it is that of another teacher."""
        return bool(self.facts.get("adopted"))

    def names(self, own: Sequence[str]) -> Sequence[str]:
        """Return what its classes are called: ``own``, or their numbers if they are another's."""
        return [f"#{k}" for k in range(self.facts["num_classes"])] if self.adopted else own


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

    def value(self, measure: Measure) -> float | None:
        """Return what is drawn of it."""
        return self.accuracy if measure == "accuracy" else self.agreement


Lambdas = list[tuple[int, list[float]]]
"""What a compensated student weighs the prototypes with, while it learns: steps, with the mean of
each lambda_i over held-out substitutes, (N,)."""


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
class PoolShift(OfPool):
    """How far a substitution pool is shifted, by the teacher's predictions on it.

    Attributes:
        total_variation: Of the class proportions from uniform, 0 to 1 - 1/K.
        entropy: Of the class proportions, in nats; log K if all classes are even.
        confidence: Mean probability of the predicted class.
        teacher_fid: Frechet distance from the test images in the teacher's features; null
            without test data.
    """

    total_variation: float
    entropy: float
    confidence: float
    teacher_fid: float | None


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
        predictions: Of the evaluations that had test images (M): `expected`, the labels, and what
            students take the images for, `<variant>/<replicate>/<part>`; (M,) each.
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
    predictions: dict[Key, Mapping[str, NDArray[np.int16]]] = field(default_factory=dict)
    lambdas: dict[Cell, Lambdas] = field(default_factory=dict)
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

    def proportions_of(self, cell: Cell) -> NDArray[np.float32] | None:
        """Return P(z) of the dictionary a student ended with; null where that is not known."""
        if cell not in self.students or self.students[cell]["facts"].get("rebuilt"):
            return None  # one that was built anew on the way has more images than the pool
        pool = (cell.teacher, cell.method, cell.pool_seed)
        return next((view.proportions for view in self.dictionaries if view.key == pool), None)

    @property
    def not_run(self) -> list[Cell]:
        """Cells of the grid without an evaluation."""
        done = {row.cell for row in self.rows}
        return [cell for cell in self.wanted if cell not in done]

    def row_of(self, cell: Cell) -> Row | None:
        """Return a cell's result; null where it was not run."""
        return next((row for row in self.rows if row.cell == cell), None)

    def discordant(self, cell: Cell) -> Discordant | None:
        """Compare a cell's deployed prediction with its vanilla twin's, image by image.

        Null without test images, or where one of the two was not run, or at another budget.
        """
        row, twin = self.row_of(cell), self.row_of(replace(cell, variant="vanilla"))
        if row is None or (twin is not None and twin.budget != row.budget):
            return None
        classes = self.predictions.get(row.key, {})
        vanilla = classes.get(f"vanilla/{cell.replicate}/backbone")
        other = classes.get(f"{cell.variant}/{cell.replicate}/{row.deployed}")
        if vanilla is None or other is None:
            return None
        return mcnemar(classes["expected"], vanilla, other)
