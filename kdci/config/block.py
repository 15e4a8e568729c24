"""What all blocks of the params tree are made of: strict, frozen models and number types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Folder = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00]+$")]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Item = TypeVar("Item")


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "lists a value twice", {})
    return values


Distinct = Annotated[tuple[Item, ...], Strict(False), AfterValidator(_distinct)]
SomeDistinct = Annotated[
    tuple[Item, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)
]


class Block(BaseModel):
    """A frozen mapping of params; unknown keys, and numbers of another type, are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def refuse(key: str, problem: str) -> NoReturn:
    """Refuse a block for what is wrong with it, by the dotted key that it is about."""
    raise PydanticCustomError("cross_field", "{problem}", {"key": key, "problem": problem})


def one_of(
    names: Callable[[], Iterable[str]],
    what: str,
    *,
    is_further: Callable[[str], bool] = lambda value: False,
    further: Iterable[str] = (),
) -> AfterValidator:
    """Return what refuses a string that is none of some names.

    Args:
        names: Called when a string is validated.
        what: Word for what they name.
        is_further: Tells other lawful names.
        further: How messages show these.
    """

    def check(value: str) -> str:
        if value in names() or is_further(value):
            return value
        raise PydanticCustomError(
            "unknown_name",
            "unknown {what} '{value}'",
            {"what": what, "value": value, "names": [*names(), *further]},
        )

    return AfterValidator(check)


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
