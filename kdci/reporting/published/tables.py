"""The accuracies of the paper's Tables 1 to 5, cell by cell, as they are printed. Torch-free.

Where the tables contradict themselves or each other, nothing is mended here: every number is the
printed one, and ``kdci.reporting.published.footnotes`` says what is known about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Values = tuple[float, ...]
Pair = tuple[str, str]
"""Teacher and student."""

R34_R18: Pair = ("resnet-34", "resnet-18")
VGG11_R18: Pair = ("vgg-11", "resnet-18")
W402_W161: Pair = ("wrn-40-2", "wrn-16-1")
WRN_PAIRS = (W402_W161, ("wrn-40-2", "wrn-40-1"), ("wrn-40-2", "wrn-16-2"))
CIFAR_PAIRS = (R34_R18, VGG11_R18, *WRN_PAIRS)
R50_R18: Pair = ("resnet-50", "resnet-18")
R50_MOBILE: Pair = ("resnet-50", "mobilenetv2")

HARDWARE = "RTX 3090"
"""What Table 2 was timed on."""
TEACHER, STUDENT = "teacher_from_scratch", "student_from_scratch"
"""Variants of networks that were trained on the original data."""


@dataclass(frozen=True)
class PublishedCell:
    """One accuracy in one of the tables.

    Attributes:
        table: Number of the table, 1 to 5.
        dataset: Key of ``kdci.config.catalog``.
        teacher: The teacher's backbone; null: a student trained on the original data.
        student: The student's backbone; null: a teacher.
        method: Key of the method; null: a network trained on the original data.
        variant: The arm, a key of ``kdci.deconfounding.arms``, ``TEACHER`` or ``STUDENT``.
        accuracy: Of the test split, in percent.
        seconds_per_epoch: Training time of an epoch (Table 2 alone).
        memory_mb: Memory used in MB (Table 2 alone).
    """

    table: int
    dataset: str
    teacher: str | None
    student: str | None
    method: str | None
    variant: str
    accuracy: float
    seconds_per_epoch: float | None = None
    memory_mb: float | None = None

    @property
    def key(self) -> tuple[str | None, ...]:
        """Teacher, student, method and variant."""
        return (self.teacher, self.student, self.method, self.variant)


_SCRATCH: Mapping[tuple[int, str], Mapping[str, Mapping[str, float]]] = {
    (1, "cifar10"): {
        TEACHER: {"resnet-34": 95.70, "vgg-11": 92.25, "wrn-40-2": 94.87},
        STUDENT: {"resnet-18": 95.20, "wrn-16-1": 91.12, "wrn-40-1": 93.94, "wrn-16-2": 93.95},
    },
    (1, "cifar100"): {
        TEACHER: {"resnet-34": 78.05, "vgg-11": 71.32, "wrn-40-2": 75.83},
        STUDENT: {"resnet-18": 77.10, "wrn-16-1": 65.31, "wrn-40-1": 72.19, "wrn-16-2": 73.56},
    },
    (2, "tiny-imagenet"): {TEACHER: {"resnet-34": 52.74}},
}

_BASE = ("vanilla", "kdci")
_ABLATED = ("kdci", "kdci_random_lambda", "kdci_random_prototypes", "kdci_without_proportions")
_DICTIONARIES = ("vanilla", "kdci", "kdci_other")
_AXES: Mapping[int, tuple[tuple[Pair, ...], tuple[str, ...]]] = {
    1: (CIFAR_PAIRS, _BASE),
    2: ((R34_R18,), _BASE),
    3: ((R50_R18, R50_MOBILE), _BASE),
    4: ((R34_R18,), _ABLATED),  # the table names no pair; see the footnote `pair`
    5: ((R34_R18, VGG11_R18), _DICTIONARIES),
}
"""Pairs and arms of each table."""
# By method: for each pair a number an arm.
_ACCURACIES: Mapping[tuple[int, str], Mapping[str, Sequence[Values]]] = {
    (1, "cifar10"): {
        "dafl": ((92.22, 92.62), (81.10, 81.31), (65.71, 74.56), (81.33, 82.91), (81.55, 82.65)),
        "fast": ((94.05, 94.56), (90.53, 91.16), (89.29, 89.62), (92.51, 93.09), (92.45, 92.85)),
        "cmi": ((94.24, 94.43), (91.24, 91.28), (89.16, 89.52), (91.93, 92.84), (92.00, 92.73)),
        "deepinv": ((93.26, 93.67), (90.36, 91.42), (83.04, 83.47), (86.85, 89.32), (89.72, 91.06)),
        "mosaick": ((95.27, 95.43), (91.69, 92.36), (90.03, 92.25), (93.28, 94.45), (92.94, 94.20)),
        "dfnd": ((95.36, 95.44), (91.86, 92.54), (90.26, 92.47), (93.33, 94.43), (93.11, 94.43)),
    },
    (1, "cifar100"): {
        "dafl": ((74.47, 74.51), (54.16, 58.79), (20.88, 31.75), (42.83, 46.16), (43.70, 48.48)),
        "fast": ((74.34, 75.10), (67.44, 68.97), (54.02, 54.69), (63.91, 67.09), (65.12, 68.12)),
        "cmi": ((74.64, 75.07), (66.68, 69.07), (55.28, 57.19), (63.44, 67.47), (64.22, 67.68)),
        "deepinv": ((61.32, 74.59), (54.13, 69.67), (53.77, 55.22), (61.33, 62.13), (61.34, 65.90)),
        "mosaick": ((75.91, 77.06), (71.58, 71.86), (59.32, 62.03), (66.61, 72.19), (67.36, 72.39)),
        "dfnd": ((74.42, 77.09), (68.97, 72.12), (59.02, 66.37), (69.39, 74.20), (69.85, 74.52)),
    },
    (2, "tiny-imagenet"): {
        "fast": ((28.79, 38.23),),
        "deepinv": ((20.68, 34.84),),
        "dfnd": ((42.64, 49.54),),
    },
    (3, "imagenet"): {
        "fast": ((53.45, 58.24), (43.02, 50.12)),
        "deepinv": ((51.36, 55.27), (40.25, 46.24)),
        "dfnd": ((42.82, 51.26), (16.03, 34.32)),
    },
    (4, "cifar10"): {
        "fast": ((94.56, 93.92, 93.35, 93.70),),
        "deepinv": ((93.67, 91.56, 91.84, 92.76),),
        "dfnd": ((95.38, 95.28, 94.94, 95.11),),
    },
    (4, "cifar100"): {
        "fast": ((75.10, 74.79, 73.76, 74.60),),
        "deepinv": ((74.59, 72.72, 72.81, 72.66),),
        "dfnd": ((77.09, 76.86, 76.14, 76.97),),
    },
    (5, "cifar10"): {
        "fast": ((94.05, 94.56, 93.96), (90.53, 91.16, 90.73)),
        "deepinv": ((93.26, 93.67, 93.56), (90.36, 91.42, 91.26)),
        "dfnd": ((95.36, 95.44, 95.41), (91.86, 92.54, 92.34)),
    },
    (5, "cifar100"): {
        "fast": ((74.42, 75.10, 74.75), (67.44, 68.97, 68.75)),
        "deepinv": ((61.32, 74.59, 73.04), (54.13, 69.67, 68.04)),
        "dfnd": ((74.34, 77.09, 76.97), (68.97, 72.12, 71.97)),
    },
}
# Of Table 2 seconds of an epoch and MB: vanilla, then KDCI.
_COSTS: Mapping[str, Sequence[Values]] = {
    "fast": ((101.67, 5745), (104.43, 5748)),
    "deepinv": ((255.26, 3312), (258.51, 3316)),
    "dfnd": ((129.16, 4196), (133.42, 4198)),
}


def published_cells(dataset: str | None = None) -> list[PublishedCell]:
    """Return the cells of all tables, in the order of their lines, networks from scratch first.

    Args:
        dataset: Of this dataset alone; none has any but those of the tables.
    """
    return [
        cell
        for table, name in _ACCURACIES
        if dataset in (None, name)
        for cells in (_scratch_cells(table, name), _method_cells(table, name))
        for cell in cells
    ]


def _scratch_cells(table: int, dataset: str) -> Iterator[PublishedCell]:
    for variant, networks in _SCRATCH.get((table, dataset), {}).items():
        for name, accuracy in networks.items():
            teacher, student = (name, None) if variant == TEACHER else (None, name)
            yield PublishedCell(table, dataset, teacher, student, None, variant, accuracy)


def _method_cells(table: int, dataset: str) -> Iterator[PublishedCell]:
    pairs, arms = _AXES[table]
    for column, pair in enumerate(pairs):
        for method, accuracies in _ACCURACIES[table, dataset].items():
            costs: Sequence[Values] = _COSTS[method] if table == 2 else [()] * len(arms)
            for arm, accuracy, cost in zip(arms, accuracies[column], costs, strict=True):
                yield PublishedCell(table, dataset, *pair, method, arm, accuracy, *cost)
