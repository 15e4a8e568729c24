"""What all blocks of the params tree are made of: strict, frozen models and number types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Folder = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Block(BaseModel):
    """A frozen mapping of params; unknown keys, and numbers of another type, are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def raise_first(problems: dict[str, str | None]) -> None:
    """Refuse a block by the first of ``problems`` that is one, by the dotted key it is about."""
    for key, problem in problems.items():
        if problem is not None:
            raise PydanticCustomError("cross_field", "{problem}", {"key": key, "problem": problem})


def offered(names: Callable[[], Iterable[str]], *, else_pattern: str | None = None) -> Any:
    """Return what tells the JSON schema of the names a string may be.

    Args:
        names: Called when the schema is made.
        else_pattern: A regular expression of further ones.
    """

    def extend(schema: dict[str, Any]) -> None:
        listed = {"enum": [*names()]}
        schema.update(
            {"anyOf": [listed, {"pattern": else_pattern}]} if else_pattern is not None else listed
        )

    return Field(json_schema_extra=extend)
