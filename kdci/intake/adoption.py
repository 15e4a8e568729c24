"""A finished teacher, `teacher.artifact` in the params, compared with what the params ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kdci.config.catalog import CUSTOM, DATASETS, DatasetSpec
from kdci.errors import IntegrityError, UserError

KEY = "teacher.artifact"
_CLOSE = 1e-4
"""Means and deviations are written with three to five digits."""
_SHOWN = 12
"""Class names that a message lists."""


@contextmanager
def adopting(place: str) -> Iterator[None]:
    """Word the errors of opening a finished teacher for who named it in the params.

    Args:
        place: Its folder as the params name it.

    Raises:
        UserError: There is no teacher.
        IntegrityError: It is damaged.
    """
    try:
        yield
    except UserError as error:
        fix = "give the folder that `kdci import-teacher` wrote"
        raise UserError(KEY, f"{place}: {error.what}", fix) from None
    except IntegrityError as error:
        raise IntegrityError(error.subject, error.what, "import the teacher again") from None


def require_content(content: str, place: str, *, wanted: str | None) -> None:
    """Check that a finished teacher is the very one that the params name, if they do.

    Args:
        content: Content hash of the teacher's files.
        place: Its folder as the params name it, for messages.
        wanted: `teacher.content`; None: any will do.

    Raises:
        IntegrityError: It is another.
    """
    if wanted is not None and content != wanted:
        what = f"has content {content[:12]}..., but teacher.content names {wanted[:12]}..."
        raise IntegrityError(place, what, "import that teacher again, or name this one's content")


def require_adoptable(
    facts: Mapping[str, Any], place: str, *, backbone: str, spec: DatasetSpec
) -> None:
    """Check that a finished teacher is the one that the params ask for.

    Its normalisation is its own. Of a dataset of the catalog it may differ from the catalog's;
    the facts of a custom one are the user's word on this very teacher, and have to agree: among
    them the names of the classes and their order, where the card has them.

    Args:
        facts: Of the teacher's card.
        place: Its folder as the params name it, for messages.
        backbone: The teacher's backbone in the grid.
        spec: Facts of the dataset in the params.

    Raises:
        UserError: They do not agree, with the first difference.
    """
    if facts["backbone"] != backbone:
        what = f"{place} is a {facts['backbone']}, the grid asks for {backbone}"
        raise UserError(KEY, what, "name its backbone in grid.teachers")
    dataset = facts.get("dataset", spec.name)
    if dataset != spec.name and {dataset, spec.name} <= DATASETS.keys():
        what = f"{place} is a teacher of {dataset}, data.name is {spec.name}"
        raise UserError(KEY, what, "choose the dataset it was trained on")
    for fact in ("num_classes", "channels", "image_size"):
        value = getattr(spec, fact)
        if facts[fact] != value:
            what = f"{place} has {fact} {facts[fact]}, {spec.name} has {value}"
            raise UserError(KEY, what, "choose the dataset it was trained on")
    if spec.name != CUSTOM:
        return
    for fact, values in (("mean", spec.mean), ("std", spec.std)):
        if any(abs(own - value) > _CLOSE for own, value in zip(facts[fact], values, strict=True)):
            what = f"{place} was trained with {fact} {facts[fact]}, data.facts says {list(values)}"
            raise UserError(KEY, what, f"write its own in data.facts.{fact}")
    _require_class_names(facts.get("class_names"), place, spec)


def _require_class_names(own: Sequence[str] | None, place: str, spec: DatasetSpec) -> None:
    """Compare the order of the classes, which nothing else tells: shapes fit in any order."""
    if own is None or tuple(own) == spec.stated_names:
        return
    if not spec.stated_names:
        what = f"{place} states its class names, data.facts does not"
    else:
        what = f"{place} has other class names than data.facts"
        for index, (its, other) in enumerate(zip(own, spec.class_names, strict=False)):
            if its != other:
                what = f"{place} calls class {index} {its!r}, data.facts {other!r}"
                break
    shown = json.dumps(list(own[:_SHOWN]), ensure_ascii=False)
    listed = shown if len(own) <= _SHOWN else f"{shown[:-1]}, ...]"
    raise UserError(KEY, what, f"write its own in data.facts.class_names: {listed}")
