"""Reads params.yaml and words what is wrong with it: every error, one line each, with its key."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from kdci.config.by_method import WITHOUT_BLOCKS
from kdci.config.params import Params, StudentRecipe
from kdci.errors import CombinedUserError, StorageError, UserError
from kdci.substitution.registry import block_of, names

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
_PLAINLY = {
    "tuple_type": "should be a list",
    "model_type": "should be a block of keys",
    "bool_type": "should be true or false",
}


def load_params(path: Path, *, methods: bool = True) -> Params:
    """Read and validate a params file.

    Args:
        path: A YAML 1.2 file (``1e-4`` is a number, a repeated key is an error).
        methods: Whether the methods' blocks are read, for which their files are imported, and torch
            with them. Without, `methods` holds plain mappings, and only the names are checked.

    Raises:
        CombinedUserError: Anything is wrong with its content; carries all problems found.
        StorageError: The file can not be read.
    """
    tree = read_yaml(path)
    try:
        return Params.model_validate(tree, context=None if methods else WITHOUT_BLOCKS)
    except ValidationError as error:
        raise CombinedUserError(_problems(path, tree, error.errors())) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping; aliases and files above 1 MB are refused."""
    text = _read_text(path)
    try:
        tree = copy.deepcopy(_parsed(text))
    except _NotPlainError as error:
        raise UserError(str(path), *error.args) from None
    except (YAMLError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise UserError(str(path), _yaml_problem(error), "mend that line") from None
    if not isinstance(tree, dict):
        what = "is empty" if tree is None else "is not a mapping of keys to values"
        raise UserError(str(path), what, "start from `kdci preset digits`")
    return tree


class _NotPlainError(Exception):
    """What the text has that params have no use for, and what to do about it."""


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Return what a text says; the parser is slow, and a process reads its params several times."""
    _require_plain(text)
    return YAML(typ="safe", pure=True).load(text)


def _require_plain(text: str) -> None:
    """Refuse what can stand for, or nest, exponentially much."""
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, AliasEvent):
            raise _NotPlainError("uses a YAML alias", "write the value out")
        if isinstance(event, CollectionStartEvent):
            depth += 1
        elif isinstance(event, CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _NotPlainError("is nested too deeply", f"at most {MAX_DEPTH} levels")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            str(path), "does not exist", "write one with `kdci preset digits`"
        ) from None
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error), "make it readable") from None
    if len(raw) > MAX_BYTES:
        raise UserError(str(path), f"has {len(raw):,} bytes", f"at most {MAX_BYTES:,} are read")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(str(path), "is not UTF-8 text", "save it as UTF-8") from None


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        first_line = str(error.problem or error.context or "not valid YAML").splitlines()[0]
        return where + first_line
    return "is not valid YAML" if isinstance(error, YAMLError) else str(error).splitlines()[0]


def _problems(path: Path, tree: dict[str, Any], details: Sequence[ErrorDetails]) -> list[UserError]:
    """Word each error; the branches of a union become one line: "a number, or 'N'"."""
    by_key: dict[str, UserError] = {}
    locations = [detail["loc"] for detail in details]
    for detail in details:
        size = len(detail["loc"])
        if detail["type"] == "too_short" and any(
            len(other) > size and other[:size] == detail["loc"] for other in locations
        ):
            continue  # the list is only short of the item that another line is about
        problem = _problem(path, tree, detail)
        earlier = by_key.get(problem.subject)
        if earlier is not None:
            what = f"{earlier.what}; {problem.what}"
            problem = UserError(problem.subject, what, problem.fix)
        by_key[problem.subject] = problem
    return list(by_key.values())


def _problem(path: Path, tree: dict[str, Any], detail: ErrorDetails) -> UserError:
    context = detail.get("ctx", {})
    location = [str(part) for part in detail["loc"] if not _is_union_tag(part, tree, detail["loc"])]
    key = ".".join([*location, *([str(context["key"])] if "key" in context else [])])
    key = key or str(path)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return UserError(key, "unknown key", _closest(location[-1], _sibling_keys(location)))
    if kind == "missing":
        return UserError(key, "missing", f"add it to {path.name}")
    if kind == "unknown_name":
        names = context["names"]
        return UserError(key, detail["msg"], _closest(str(context["value"]), names))
    if kind == "literal_error" and isinstance(detail["input"], str):
        names = [name.strip("'") for name in re.split(r", | or ", context["expected"])]
        return UserError(
            key, f"unknown value {detail['input']!r}", _closest(detail["input"], names)
        )
    message = _PLAINLY.get(kind, _lower_first(detail["msg"]))
    got = f", got {detail['input']!r}" if kind not in ("cross_field", "repeated") else ""
    return UserError(key, message + got, f"mend it in {path.name}")


def _is_union_tag(part: str | int, tree: dict[str, Any], location: Sequence[str | int]) -> bool:
    """Tell pydantic's own location parts (the branch of a union) from the file's keys."""
    node: Any = tree
    for step in location:
        at_end = not isinstance(node, dict | list)
        if step == part:
            return at_end
        if isinstance(node, dict):
            node = node.get(str(step))
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
        else:
            return False
    return False


def _sibling_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Params
    if location[0] in ("methods", "recipes"):
        if len(location) == 2:
            return [*names()]
        model = block_of(location[1]) if location[0] == "methods" else StudentRecipe
        location = location[2:]
    for part in location[:-1]:
        field = model.model_fields.get(part)
        inner = _model_of(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_of(argument)
        if found is not None:
            return found
    return None


def _closest(word: str, names: Iterable[str]) -> str:
    allowed = sorted(names)
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    listing = f"one of {', '.join(allowed)}" if allowed else ""
    if close:
        return f"did you mean '{close[0]}'? {listing}"
    return listing


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
