"""The methods by name, found by listing their files: those of ``kdci.methods``, and others'.

A package of somebody's brings a method by an entry point of the group ``kdci.methods``: its name is
the method's, its value `module:BlockClass`. What tables and params need of a method (name, title,
whether it is a control) is read from its file without running it, so it takes no torch.
"""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from kdci.errors import UserError
from kdci.substitution.block import MethodBlock

PACKAGE = "kdci.methods"
"""Where the project's own methods lie; the group of others' entry points has the same name."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HEADING = re.compile(r"([^:(]{1,32}?)(?: \([^)]*\))?: \S")


@dataclass(frozen=True)
class _Method:
    """A method that was found, and not yet imported.

    Attributes:
        name: Its key in params.
        module: Dotted name of its file.
        block: Name of its block's class; "": the only block of the file.
        bringer: The package that brings it.
    """

    name: str
    module: str
    block: str
    bringer: str

    @cached_property
    def tree(self) -> ast.Module:
        """The file, read and not run; empty where there is no source that can be read."""
        try:
            file = _file_of(self.module)
            return ast.parse(file.read_bytes() if file else b"")
        except (OSError, SyntaxError):  # `load` tells of it, once the method is asked for
            return ast.Module([], [])

    @property
    def summary(self) -> str:
        """The first line of the file's docstring; "" if it has none."""
        lines = (ast.get_docstring(self.tree) or "").splitlines()
        return lines[0] if lines else ""

    @property
    def title(self) -> str:
        """What stands before the colon there, without what is in brackets; or the name."""
        heading = _HEADING.match(self.summary)
        return heading[1] if heading else self.name

    @property
    def is_control(self) -> bool:
        """Whether a class of the file says that it is one."""
        return any(_says_control(node) for node in ast.walk(self.tree))

    def load(self) -> type[MethodBlock]:
        """Import the file and return its block."""
        module = import_module(self.module)
        if self.block:
            block = getattr(module, self.block)
        else:
            (block,) = (
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, MethodBlock)
                and value.__module__ == self.module
            )
        if not (isinstance(block, type) and issubclass(block, MethodBlock)):
            raise TypeError(f"{self.block} is no MethodBlock")
        return block


def _says_control(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "is_control"
        and isinstance(node.value, ast.Constant)
        and node.value.value is True
    )


def _file_of(module: str) -> Path | None:
    """Return the source of a module without importing it or the packages that it lies in."""
    head, *rest = module.split(".")
    spec, name = find_spec(head), head
    for part in rest:
        if spec is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    file = Path(spec.origin) if spec is not None and spec.origin is not None else None
    return file if file is not None and file.suffix == ".py" else None


def _candidates() -> Iterator[_Method]:
    folder = Path(__file__).resolve().parents[1] / PACKAGE.rpartition(".")[2]
    for file in pkgutil.iter_modules([str(folder)]):
        yield _Method(file.name, f"{PACKAGE}.{file.name}", "", "kdci")
    for entry in sorted(entry_points(group=PACKAGE), key=lambda entry: entry.name):
        yield _Method(entry.name, entry.module, entry.attr, _bringer(entry))


def _bringer(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


@cache
def _found() -> dict[str, _Method]:
    """Return the methods by name: the project's in the order of the alphabet, then others'.

    Raises:
        UserError: A name is taken twice, or is none that params may have.
    """
    found: dict[str, _Method] = {}
    for method in _candidates():
        where = f"entry point {method.name} of {method.bringer}"
        if _NAME.fullmatch(method.name) is None:
            what = f"{method.name!r} is no name of a method"
            raise UserError(where, what, "small letters, digits and _, at most 32")
        if method.name in found:
            what = f"{found[method.name].bringer} has a method of this name already"
            raise UserError(where, what, f"uninstall one of them: pip uninstall {method.bringer}")
        found[method.name] = method
    return found


def names() -> tuple[str, ...]:
    """Return the names of all methods and controls.

    Raises:
        UserError: Two packages bring a method of the same name.
    """
    return tuple(_found())


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of the methods."""
    return tuple(name for name, method in _found().items() if not method.is_control)


@cache
def control_names() -> tuple[str, ...]:
    """Return the names of what methods are measured against, which are no methods themselves."""
    return tuple(name for name, method in _found().items() if method.is_control)


def title_of(name: str) -> str:
    """Return a method's name as tables and figures write it; of no method, the name itself."""
    return _found()[name].title if name in _found() else name


def module_of(name: str) -> str:
    """Return the dotted name of a method's file, without importing it."""
    return _found_as(name).module


@cache
def block_of(name: str) -> type[MethodBlock]:
    """Import a method's file and return the class of its params block.

    Raises:
        ValueError: There is no such method.
        UserError: Somebody's package can not be loaded.
    """
    method = _found_as(name)
    if method.bringer == "kdci":
        return method.load()
    try:
        return method.load()
    except Exception as error:
        what = f"{method.module} can not be loaded: {type(error).__name__}: {error}"
        where = f"entry point {name} of {method.bringer}"
        fix = f"mend it, or pip uninstall {method.bringer}"
        raise UserError(where, what, fix) from error


def _found_as(name: str) -> _Method:
    if name not in _found():
        raise ValueError(f"unknown method {name!r}, one of {sorted(_found())}")
    return _found()[name]
