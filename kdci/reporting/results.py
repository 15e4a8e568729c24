"""Rows of results: one per evaluated student, and the file ``report/results.json``. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from kdci.deconfounding.arms import ARMS
from kdci.errors import IntegrityError, UserError
from kdci.store.layout import Cell

Measure = Literal["accuracy", "agreement"]
Quantity = Literal["accuracy", "agreement", "calibration_error", "marginal_bias"]
"""What is known of a student's prediction: what it is judged by, and what a shift leaves in it."""
Part = Literal["backbone", "compensated"]
Key = tuple[str, str, str]
"""Teacher, student, method."""
Replicate = tuple[int, int]
"""Pool seed, student seed."""
_T = TypeVar("_T")
_K = TypeVar("_K", bound=Hashable)


class Group(NamedTuple):
    """What one table is about. Budgets never share a mean."""

    teacher: str
    student: str
    budget: float = 1.0


@dataclass(frozen=True)
class Row:
    """One evaluated student; accuracies and agreements in percent.

    Attributes:
        accuracy: The deployed one of the two below; null without test data.
        accuracy_backbone: Of the student alone.
        accuracy_compensated: Of the student with the compensation module; null for vanilla.
        agreement_backbone: With the teacher on held-out substitutes.
        agreement_compensated: The same for the compensated prediction; null for vanilla.
        seconds: Distillation alone; null when the times were not kept.
        deploy: Which of the two is deployed, `backbone` or `compensated`.
        calibration_error_backbone: Expected calibration error on the test split, in points.
        calibration_error_compensated: The same for the compensated prediction.
        marginal_bias_backbone: Total variation of the predicted class proportions from the
            true ones, 0 to 1.
        marginal_bias_compensated: The same for the compensated prediction.
        budget: Factor on the steps of pool and student that params.yaml asked for.
    """

    preset: str
    dataset: str
    teacher: str
    student: str
    method: str
    variant: str
    pool_seed: int
    seed: int
    accuracy: float | None
    accuracy_backbone: float | None
    accuracy_compensated: float | None
    teacher_accuracy: float | None
    agreement_backbone: float | None
    agreement_compensated: float | None
    num_steps: int
    seconds: float | None
    deploy: str
    calibration_error_backbone: float | None = None
    calibration_error_compensated: float | None = None
    marginal_bias_backbone: float | None = None
    marginal_bias_compensated: float | None = None
    budget: float = 1.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any], **more: Any) -> Row:
        """Build a row from a JSON object; keys that a row does not know are left out.

        Raises:
            KeyError: A value is missing.
        """
        known = {**values, **more}
        asked = (f.name for f in fields(cls) if f.name in known or f.default is MISSING)
        return cls(**{name: known[name] for name in asked})

    @property
    def key(self) -> Key:
        """Teacher, student and method."""
        return (self.teacher, self.student, self.method)

    @property
    def group(self) -> Group:
        """Teacher, student and budget."""
        return Group(self.teacher, self.student, self.budget)

    @property
    def cell(self) -> Cell:
        """The student of the grid that this is the result of."""
        return Cell(*self.key, self.variant, *self.replicate)

    @property
    def replicate(self) -> Replicate:
        """Pool seed and student seed: what a vanilla and a KDCI student share."""
        return (self.pool_seed, self.seed)

    @property
    def deployed(self) -> Part:
        """The deployed prediction; only an arm with a module has two to choose from."""
        compensated = self.variant in ARMS and ARMS[self.variant].compensated
        return "compensated" if compensated and self.deploy == "compensated" else "backbone"

    def value(self, quantity: Quantity, part: Part) -> float | None:
        """Return what is known of one of a student's two predictions."""
        number: float | None = getattr(self, f"{quantity}_{part}")
        return number


def grouped(items: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    """Return items by a key of theirs, in the order that keys occur."""
    found: dict[_K, list[_T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def measure_of(rows: Iterable[Row]) -> Measure:
    """Return `accuracy`, or `agreement` where no row has one: there was no test data."""
    known = list(rows)
    tested = any(row.accuracy_backbone is not None for row in known)
    return "accuracy" if tested or not known else "agreement"


def load_rows(path: Path) -> list[Row]:
    """Read ``report/results.json``.

    Raises:
        UserError: There is no such file yet.
        IntegrityError: It is not a list of rows.
    """
    try:
        return [Row.from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise UserError(str(path), "there are no results yet", "run `dvc repro`") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(str(path), "is damaged", "run `dvc repro -f report`") from None
