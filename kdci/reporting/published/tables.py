"""The accuracies of the paper's Tables 1 to 5, cell by cell, as they are printed. Torch-free.

Where the tables contradict themselves or each other, nothing is mended here: every number is the
printed one, and ``kdci.reporting.published.footnotes`` says what is known about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kdci.reporting.published.pairs import (
    CIFAR_PAIRS,
    R34_R18,
    R50_MOBILE,
    R50_R18,
    VGG11_R18,
    Pair,
)

Role = Literal["teacher", "student"]
Values = tuple[float, ...]


@dataclass(frozen=True)
class PublishedCell:
    """One accuracy of a method in one of the tables.

    Attributes:
        table: Number of the table, 1 to 5.
        dataset: Key of ``kdci.config.catalog``.
        teacher: The teacher's backbone.
        student: The student's backbone.
        method: Key of the method.
        variant: The arm, a key of ``kdci.deconfounding.arms``.
        accuracy: Of the test split, in percent.
        seconds_per_epoch: Training time of an epoch (Table 2 alone).
        memory_mb: Memory used in MB (Table 2 alone).
    """

    table: int
    dataset: str
    teacher: str
    student: str
    method: str
    variant: str
    accuracy: float
    seconds_per_epoch: float | None = None
    memory_mb: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Teacher, student, method and variant."""
        return (self.teacher, self.student, self.method, self.variant)


@dataclass(frozen=True)
class ScratchCell:
    """One accuracy of a network trained on the original data, no distillation.

    Attributes:
        table: Number of the table.
        dataset: Key of ``kdci.config.catalog``.
        teacher: Teacher of the column that it stands in.
        student: Student of that column.
        role: Which of the two was trained.
        accuracy: Of the test split, in percent.
    """

    table: int
    dataset: str
    teacher: str
    student: str
    role: Role
    accuracy: float

    @property
    def backbone(self) -> str:
        """Of the network that was trained."""
        return self.teacher if self.role == "teacher" else self.student


HARDWARE = "RTX 3090"
"""What Table 2 was timed on."""

_METHODS = ("dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd")

# A line a method: vanilla, then KDCI; a number a pair, in the order of CIFAR_PAIRS.
_TABLE_1: Mapping[str, Mapping[str, tuple[Values, Values]]] = {
    "cifar10": {
        "dafl": ((92.22, 81.10, 65.71, 81.33, 81.55), (92.62, 81.31, 74.56, 82.91, 82.65)),
        "fast": ((94.05, 90.53, 89.29, 92.51, 92.45), (94.56, 91.16, 89.62, 93.09, 92.85)),
        "cmi": ((94.24, 91.24, 89.16, 91.93, 92.00), (94.43, 91.28, 89.52, 92.84, 92.73)),
        "deepinv": ((93.26, 90.36, 83.04, 86.85, 89.72), (93.67, 91.42, 83.47, 89.32, 91.06)),
        "mosaick": ((95.27, 91.69, 90.03, 93.28, 92.94), (95.43, 92.36, 92.25, 94.45, 94.20)),
        "dfnd": ((95.36, 91.86, 90.26, 93.33, 93.11), (95.44, 92.54, 92.47, 94.43, 94.43)),
    },
    "cifar100": {
        "dafl": ((74.47, 54.16, 20.88, 42.83, 43.70), (74.51, 58.79, 31.75, 46.16, 48.48)),
        "fast": ((74.34, 67.44, 54.02, 63.91, 65.12), (75.10, 68.97, 54.69, 67.09, 68.12)),
        "cmi": ((74.64, 66.68, 55.28, 63.44, 64.22), (75.07, 69.07, 57.19, 67.47, 67.68)),
        "deepinv": ((61.32, 54.13, 53.77, 61.33, 61.34), (74.59, 69.67, 55.22, 62.13, 65.90)),
        "mosaick": ((75.91, 71.58, 59.32, 66.61, 67.36), (77.06, 71.86, 62.03, 72.19, 72.39)),
        "dfnd": ((74.42, 68.97, 59.02, 69.39, 69.85), (77.09, 72.12, 66.37, 74.20, 74.52)),
    },
}
_SCRATCH_1: Mapping[str, Mapping[Role, Values]] = {
    "cifar10": {
        "teacher": (95.70, 92.25, 94.87, 94.87, 94.87),
        "student": (95.20, 95.20, 91.12, 93.94, 93.95),
    },
    "cifar100": {
        "teacher": (78.05, 71.32, 75.83, 75.83, 75.83),
        "student": (77.10, 77.10, 65.31, 72.19, 73.56),
    },
}

# Accuracy, seconds of an epoch, MB: vanilla, then KDCI.
_TABLE_2: Mapping[str, tuple[Values, Values]] = {
    "fast": ((28.79, 101.67, 5745), (38.23, 104.43, 5748)),
    "deepinv": ((20.68, 255.26, 3312), (34.84, 258.51, 3316)),
    "dfnd": ((42.64, 129.16, 4196), (49.54, 133.42, 4198)),
}
_TEACHER_2 = 52.74

# Vanilla, then KDCI, of the two students of resnet-50.
_TABLE_3: Mapping[str, Mapping[Pair, Values]] = {
    "fast": {R50_R18: (53.45, 58.24), R50_MOBILE: (43.02, 50.12)},
    "deepinv": {R50_R18: (51.36, 55.27), R50_MOBILE: (40.25, 46.24)},
    "dfnd": {R50_R18: (42.82, 51.26), R50_MOBILE: (16.03, 34.32)},
}

_ABLATED = ("kdci", "kdci_random_lambda", "kdci_random_prototypes", "kdci_without_proportions")
# A number an arm of _ABLATED.
_TABLE_4: Mapping[str, Mapping[str, Values]] = {
    "cifar10": {
        "fast": (94.56, 93.92, 93.35, 93.70),
        "deepinv": (93.67, 91.56, 91.84, 92.76),
        "dfnd": (95.38, 95.28, 94.94, 95.11),
    },
    "cifar100": {
        "fast": (75.10, 74.79, 73.76, 74.60),
        "deepinv": (74.59, 72.72, 72.81, 72.66),
        "dfnd": (77.09, 76.86, 76.14, 76.97),
    },
}

_DICTIONARIES = ("vanilla", "kdci", "kdci_other")
# Of each pair a number an arm of _DICTIONARIES.
_TABLE_5: Mapping[str, Mapping[Pair, Mapping[str, Values]]] = {
    "cifar10": {
        R34_R18: {
            "fast": (94.05, 94.56, 93.96),
            "deepinv": (93.26, 93.67, 93.56),
            "dfnd": (95.36, 95.44, 95.41),
        },
        VGG11_R18: {
            "fast": (90.53, 91.16, 90.73),
            "deepinv": (90.36, 91.42, 91.26),
            "dfnd": (91.86, 92.54, 92.34),
        },
    },
    "cifar100": {
        R34_R18: {
            "fast": (74.42, 75.10, 74.75),
            "deepinv": (61.32, 74.59, 73.04),
            "dfnd": (74.34, 77.09, 76.97),
        },
        VGG11_R18: {
            "fast": (67.44, 68.97, 68.75),
            "deepinv": (54.13, 69.67, 68.04),
            "dfnd": (68.97, 72.12, 71.97),
        },
    },
}


def published_cells(dataset: str | None = None) -> list[PublishedCell]:
    """Return the methods' cells of all tables, in the order of their lines.

    Args:
        dataset: Of this dataset alone; none has any but those of the tables.
    """
    tables = (_cells_1, _cells_2, _cells_3, _cells_4, _cells_5)
    found = [cell for cells in tables for cell in cells()]
    return [cell for cell in found if dataset in (None, cell.dataset)]


def scratch_cells(dataset: str | None = None) -> list[ScratchCell]:
    """Return what networks reach that were trained on the original data, a cell a column."""
    found = [
        ScratchCell(1, name, *pair, role, value)
        for name, lines in _SCRATCH_1.items()
        for role, values in lines.items()
        for pair, value in zip(CIFAR_PAIRS, values, strict=True)
    ]
    found.append(ScratchCell(2, "tiny-imagenet", *R34_R18, "teacher", _TEACHER_2))
    return [cell for cell in found if dataset in (None, cell.dataset)]


def _cells_1() -> Iterator[PublishedCell]:
    for dataset, lines in _TABLE_1.items():
        for number, pair in enumerate(CIFAR_PAIRS):
            for method in _METHODS:
                vanilla, kdci = lines[method]
                yield PublishedCell(1, dataset, *pair, method, "vanilla", vanilla[number])
                yield PublishedCell(1, dataset, *pair, method, "kdci", kdci[number])


def _cells_2() -> Iterator[PublishedCell]:
    for method, lines in _TABLE_2.items():
        for variant, values in zip(("vanilla", "kdci"), lines, strict=True):
            yield PublishedCell(2, "tiny-imagenet", *R34_R18, method, variant, *values)


def _cells_3() -> Iterator[PublishedCell]:
    for pair in (R50_R18, R50_MOBILE):
        for method, columns in _TABLE_3.items():
            for variant, value in zip(("vanilla", "kdci"), columns[pair], strict=True):
                yield PublishedCell(3, "imagenet", *pair, method, variant, value)


def _cells_4() -> Iterator[PublishedCell]:
    # The table names no pair; see the footnote `pair`.
    for dataset, lines in _TABLE_4.items():
        for method, values in lines.items():
            for variant, value in zip(_ABLATED, values, strict=True):
                yield PublishedCell(4, dataset, *R34_R18, method, variant, value)


def _cells_5() -> Iterator[PublishedCell]:
    for dataset, columns in _TABLE_5.items():
        for pair, lines in columns.items():
            for method, values in lines.items():
                for variant, value in zip(_DICTIONARIES, values, strict=True):
                    yield PublishedCell(5, dataset, *pair, method, variant, value)
