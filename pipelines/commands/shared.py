"""What commands share: the project folder, its params, and how problems are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from kdci.errors import KdciError, UserError

if TYPE_CHECKING:
    from kdci.config.params import Params
    from kdci.store.layout import Layout

T = TypeVar("T")


@dataclass
class Options:
    """The options before the command; no root: it is looked for."""

    root: Path | None = None
    debug: bool = False


def tell(problems: Sequence[KdciError]) -> int:
    """Write every problem to stderr and return the exit code: that of the gravest one."""
    for problem in problems:
        for line in problem.lines():
            typer.echo(line, err=True)
    return max(problem.exit_code for problem in problems)


def root_if_any(context: typer.Context) -> Path | None:
    """Return the project folder; None: the command runs outside of one.

    Raises:
        UserError: The one that is given is none.
    """
    given: Path | None = context.obj.root
    if given is not None:
        if not given.is_dir():
            raise UserError(str(given), "is no folder", "give the project folder")
        return given.absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if any((folder / name).is_file() for name in ("params.yaml", "dvc.yaml")):
            return folder
    return None


def project_root(context: typer.Context) -> Path:
    """Return the project folder.

    Raises:
        UserError: There is none.
    """
    root = root_if_any(context)
    if root is None:
        what = "neither it nor a folder above holds params.yaml or dvc.yaml"
        fix = "go to the project folder, or give it with --root"
        raise UserError(str(Path.cwd()), what, fix)
    return root


def project(context: typer.Context, *, methods: bool = True) -> tuple[Params, Layout]:
    """Return the params of the project, validated, and where everything lies.

    Args:
        context: Of the command.
        methods: Whether the methods' blocks are needed, and torch with them.

    Raises:
        UserError: There is no project, or its params are not valid.
    """
    from kdci.config.params_file import load_params
    from kdci.store.layout import Layout

    root = project_root(context)
    params = load_params(root / "params.yaml", methods=methods)
    return params, Layout(root, params.preset)


def warn(text: str) -> None:
    """Write a warning to stderr."""
    typer.echo(f"kdci: warning: {text}", err=True)


def numbers(text: str | None, option: str = "--seeds") -> list[int] | None:
    """Read `0,1,2`, the value of ``option``.

    Raises:
        UserError: It is no list of numbers.
    """
    return listed(text, option, int, "0,1,2")


def listed(text: str | None, option: str, kind: Callable[[str], T], example: str) -> list[T] | None:
    """Read values of a kind, the value of ``option``; as ``numbers``."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(option, f"{text!r} is no list of numbers", f"write {example}") from None
