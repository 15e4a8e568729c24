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
    roots = [Params, *(block_of(name) for name in names())]
    found = {block.__name__: block for root in roots for block in blocks_below(root)}
    return [found[name] for name in sorted(found)]


def test_the_walk_meets_the_blocks_at_every_depth() -> None:
    found = {block.__name__ for block in all_blocks()}
    assert {"Params", "Pair", "DataFacts", "StudentRecipe", "OpenWorldPart", "Fast"} <= found


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.__name__)
def test_every_field_has_a_description(block: type[BaseModel]) -> None:
    assert (block.__doc__ or "").strip()
    silent = [name for name, field in block.model_fields.items() if not field.description]
    assert silent == []
