"""The search space: which params are searched, and over which values.

A key is a dotted key of params.yaml, its distribution a short text: ``uniform(0, 1)``,
``loguniform(0.01, 1)``, ``int(4, 64)`` or ``choice(kmeans, random)``. Everything is held against
the params model before anything runs.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdci.config.params import Params
from kdci.config.params_file import read_yaml
from kdci.errors import CombinedUserError, UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

KINDS = ("uniform", "loguniform", "int", "choice")
DIGITS = 4
"""Significant digits of a drawn number: what a human may read and write again in params.yaml."""
MAX_COMBINATIONS = 20_000
"""So many combinations of bounds and choices are held against the params model in advance."""
EXAMPLE = "write uniform(0, 1), loguniform(0.01, 1), int(4, 64) or choice(kmeans, random)"

_CALL = re.compile(r"^\s*(\w+)\s*\((.*)\)\s*$", re.DOTALL)


@dataclass(frozen=True)
class Distribution:
    """Values of one key.

    Attributes:
        kind: One of ``KINDS``.
        arguments: Lower and upper bound, both included, or the choices.
    """

    kind: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(_plain(value) for value in self.arguments)})"

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Bounds or choices: where these are valid, whatever is drawn is."""
        real = self.kind in ("uniform", "loguniform")
        return tuple(map(float, self.arguments)) if real else self.arguments

    def rounded(self, drawn: Any) -> Any:
        """Return a drawn value as it is used: numbers with few digits, within the bounds."""
        if self.kind not in ("uniform", "loguniform"):
            return drawn
        low, high = self.extremes
        return min(max(float(f"{drawn:.{DIGITS}g}"), low), high)

    def for_optuna(self) -> BaseDistribution:
        """Return Optuna's own distribution."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.kind == "choice":
            return CategoricalDistribution(self.arguments)
        low, high = self.extremes
        if self.kind == "int":
            return IntDistribution(low, high)
        return FloatDistribution(low, high, log=self.kind == "loguniform")


Space = dict[str, Distribution]


def read_space(file: Path | None, options: Sequence[str]) -> Space:
    """Read a space from a YAML file, from ``KEY=DISTRIBUTION`` options, or from both.

    Args:
        file: Maps keys, dotted or nested, to distributions or lists of choices.
        options: As on the command line.

    Raises:
        CombinedUserError: Something is no distribution, is given twice, or nothing is given.
    """
    texts: list[tuple[str, Any]] = []
    if file is not None:
        texts += dotted(read_yaml(file))
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise UserError("--space", f"{option!r} has no value", "write KEY=DISTRIBUTION")
        texts.append((key.strip(), text))
    if not texts:
        raise UserError("--search", "the space names no key", EXAMPLE)
    return _space_of(texts)


def _space_of(texts: Iterable[tuple[str, Any]]) -> Space:
    space: Space = {}
    problems: list[UserError] = []
    for key, text in texts:
        try:
            if key in space:
                raise UserError(key, "is searched twice", "give it once")
            space[key] = parse_distribution(key, text)
        except UserError as error:
            problems.append(error)
    if problems:
        raise CombinedUserError(problems)
    return space


def parse_distribution(key: str, text: Any) -> Distribution:
    """Read ``loguniform(0.01, 1)``, or a list of choices.

    Raises:
        UserError: It is no distribution, or its bounds make no sense.
    """
    if isinstance(text, list):
        found = Distribution("choice", tuple(text))
    else:
        call = _CALL.match(str(text))
        if call is None:
            raise UserError(key, f"{str(text)!r} is no distribution", EXAMPLE)
        kind = call[1]
        if kind not in KINDS:
            close = difflib.get_close_matches(kind, KINDS, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise UserError(key, f"unknown distribution {kind!r}", f"{hint}{EXAMPLE}")
        found = Distribution(kind, _arguments(key, call[2]))
    problem = _choices_problem(found) if found.kind == "choice" else _bounds_problem(found)
    if problem is not None:
        raise UserError(key, f"{found} {problem}", EXAMPLE)
    return found


def require_valid(space: Mapping[str, Distribution], params: Params) -> None:
    """Hold every bound and choice against the params model.

    Args:
        space: By dotted key.
        params: The params that the trials start from.

    Raises:
        CombinedUserError: A key does not exist, or a value is not one that it may have.
    """
    tree = params.model_dump(mode="json", by_alias=True)
    problems = [problem for key, each in space.items() for problem in _problems_of(tree, key, each)]
    if not problems:
        problems = list(islice(_conflicts(tree, space), 1))
    if problems:
        raise CombinedUserError(problems)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values below blocks, each with its dotted key."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from dotted(value, f"{name}.")
        else:
            yield name, value


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _arguments(key: str, text: str) -> tuple[Any, ...]:
    try:
        return tuple(YAML(typ="safe", pure=True).load(f"[{text}]"))
    except (YAMLError, ValueError):
        raise UserError(key, f"can not read ({text})", EXAMPLE) from None


def _choices_problem(found: Distribution) -> str | None:
    values = found.arguments
    if not values:
        return "has no choices"
    if not all(value is None or isinstance(value, bool | int | float | str) for value in values):
        return "chooses between lists or blocks"
    if len({repr(value) for value in values}) != len(values):
        return "lists a choice twice"
    return None


def _bounds_problem(found: Distribution) -> str | None:
    values = found.arguments
    numeric = int if found.kind == "int" else (int, float)
    if len(values) != 2 or not all(
        isinstance(value, numeric) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    ):
        return f"needs two {'whole ' if found.kind == 'int' else ''}numbers"
    if values[0] >= values[1]:
        return "needs a lower bound below the upper one"
    if found.kind == "loguniform" and values[0] <= 0:
        return "needs bounds above 0"
    return None


def _problems_of(tree: Mapping[str, Any], key: str, each: Distribution) -> Iterator[UserError]:
    """Find what is wrong with one key, whatever the other keys' values are."""
    known = dict(dotted(tree))
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "a dotted key of params.yaml"
        yield UserError(key, "unknown key of the params", hint)
        return
    for value in each.extremes:
        for detail in _errors(tree, {key: value}):
            if detail["type"] != "cross_field":
                message = detail["msg"][:1].lower() + detail["msg"][1:]
                yield UserError(key, f"{_plain(value)}: {message}", "narrow its distribution")
                break


def _conflicts(tree: Mapping[str, Any], space: Mapping[str, Distribution]) -> Iterator[UserError]:
    """Find combinations of values that do not go together."""
    combinations = product(*(each.extremes for each in space.values()))
    for values in islice(combinations, MAX_COMBINATIONS):
        drawn = dict(zip(space, values, strict=True))
        for detail in _errors(tree, drawn):
            told = ", ".join(f"{key} = {_plain(value)}" for key, value in drawn.items())
            key = ".".join([*map(str, detail["loc"]), str(detail.get("ctx", {}).get("key", ""))])
            fix = "leave one of them out of the space"
            yield UserError(key.strip("."), f"{detail['msg']} ({told})", fix)


def _errors(tree: Mapping[str, Any], values: Mapping[str, Any]) -> list[Any]:
    """Return what the params model has against a tree with the values at dotted keys replaced."""
    changed = copy.deepcopy(dict(tree))
    for key, value in values.items():
        *blocks, last = key.split(".")
        node = changed
        for block in blocks:
            node = node[block]
        node[last] = value
    try:
        Params.model_validate(changed)
    except ValidationError as error:
        return list(error.errors())
    return []
