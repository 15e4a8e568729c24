"""The methods' hyper-parameters for every dataset and pair of the paper's Tables 1 to 3.

``provenance`` says where a setting comes from, and what of it is a choice of ours: many pairs
have no published recipe, and for some our options can come near to the published one only.
Open-world images are expected in the folder ``data/open-world``: a placeholder, nothing there
is known. The values themselves are in ``studies.published_rows``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdci.config.params import StudentRecipe
from kdci.substitution.block import MethodBlock
from kdci.substitution.registry import block_of
from studies.published_rows import PAIRS, TABLES

BLOCKS = {method: block_of(method) for method in TABLES}


@dataclass(frozen=True)
class Setting:
    """One method's hyper-parameters for one dataset and pair.

    Attributes:
        method: Key of the method.
        dataset: Key of the dataset.
        teacher: The teacher's backbone.
        student: The student's backbone.
        block: The method's params block.
        recipe: How the student is trained.
        provenance: Where the values come from, and what of them is ours.
    """

    method: str
    dataset: str
    teacher: str
    student: str
    block: MethodBlock
    recipe: StudentRecipe
    provenance: str


def published_setting(method: str, dataset: str, teacher: str, student: str) -> Setting:
    """Return a method's hyper-parameters for a dataset and a pair of the paper's tables.

    Args:
        method: Key of a method.
        dataset: Key of a dataset.
        teacher: The teacher's backbone.
        student: The student's backbone.

    Raises:
        ValueError: There is no such method or dataset, or no such pair of this dataset.
    """
    if method not in TABLES:
        raise ValueError(f"unknown method {method!r}, one of {', '.join(TABLES)}")
    if dataset not in PAIRS:
        raise ValueError(f"unknown dataset {dataset!r}, one of {', '.join(PAIRS)}")
    pair = (teacher, student)
    if pair not in PAIRS[dataset]:
        known = ", ".join(" -> ".join(names) for names in PAIRS[dataset])
        raise ValueError(f"no pair {teacher} -> {student} of {dataset}, one of {known}")
    rows = [row for row in TABLES[method] if row.applies(dataset, pair)]
    block: dict[str, Any] = {}
    recipe: dict[str, Any] = {"momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine"}
    for row in rows:
        block |= row.block
        recipe |= row.recipe
    return Setting(
        method,
        dataset,
        teacher,
        student,
        BLOCKS[method].model_validate(block),
        StudentRecipe.model_validate(recipe),
        rows[-1].provenance,
    )


def published_settings() -> Iterator[Setting]:
    """Yield the settings of every method, dataset and pair, in the order of the tables."""
    for method in TABLES:
        for dataset, pairs in PAIRS.items():
            for teacher, student in pairs:
                yield published_setting(method, dataset, teacher, student)
