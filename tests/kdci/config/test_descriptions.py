"""Every value of params.yaml says what it is: in editors, and in the published schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from kdci.config.params import Params
from kdci.substitution.registry import block_of, names


def blocks_below(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from blocks_below(field.annotation)
    for argument in get_args(annotation):
        yield from blocks_below(argument)


def all_blocks() -> list[type[BaseModel]]:
    """Return every block of the tree, those of the methods included."""
    found = [*blocks_below(Params)]
    for name in names():
        found += blocks_below(block_of(name))
    return [block for _, block in sorted({block.__name__: block for block in found}.items())]


def test_the_walk_meets_the_blocks_at_every_depth() -> None:
    found = {block.__name__ for block in all_blocks()}
    assert {"Params", "Pair", "DataFacts", "StudentRecipe", "OpenWorldPart", "Fast"} <= found


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.__name__)
def test_every_field_has_a_description(block: type[BaseModel]) -> None:
    assert (block.__doc__ or "").strip()
    silent = [name for name, field in block.model_fields.items() if not field.description]
    assert silent == []
