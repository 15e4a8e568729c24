"""The params blocks that are mappings by method name: `methods` and `recipes`.

A method's file, and torch with it, is imported when `methods` is validated, and only if it is in
there. Validated with the context ``WITHOUT_BLOCKS``, the blocks stay plain mappings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from kdci.config.block import Block
from kdci.config.recipes import StudentRecipe
from kdci.substitution.block import MethodBlock
from kdci.substitution.registry import block_of, names

WITHOUT_BLOCKS = {"methods": False}
"""Validation context in which names of methods are checked and their files are not imported."""


def _recipe_of(name: str) -> type[StudentRecipe]:
    return StudentRecipe


def _mapping_of(name: str) -> Any:
    return dict[str, Any]


@cache
def _model(kind_of: Callable[[str], Any], methods: tuple[str, ...]) -> type[Block]:
    """Return a block with a field a method, so that errors have the keys of the file."""
    fields: dict[str, Any] = {name: (kind_of(name) | None, None) for name in methods}
    return create_model("ByMethod", __base__=Block, **fields)


def _validated(value: Any, kind_of: Callable[[str], Any]) -> dict[str, Any]:
    given = value if isinstance(value, Mapping) else {}
    block = _model(kind_of, tuple(name for name in names() if name in given)).model_validate(value)
    return {name: found for name, found in block if found is not None}


def _methods(
    value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
) -> dict[str, Any]:
    if info.context == WITHOUT_BLOCKS:
        return _validated(value, _mapping_of)
    blocks: dict[str, Any] = handler(_validated(value, block_of))
    return blocks


def _recipes(value: Any) -> dict[str, Any]:
    return _validated(value, _recipe_of)


@dataclass(frozen=True)
class _Schema:
    """The JSON schema of a mapping by method: of every method that there is."""

    kind_of: Callable[[str], Any]

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(_model(self.kind_of, names()).__pydantic_core_schema__)


MethodBlocks = Annotated[
    dict[str, SerializeAsAny[MethodBlock]], WrapValidator(_methods), _Schema(block_of)
]
StudentRecipes = Annotated[dict[str, StudentRecipe], BeforeValidator(_recipes), _Schema(_recipe_of)]
