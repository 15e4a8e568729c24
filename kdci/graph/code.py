"""What a stage's code is: the modules that its result depends on, as one hash.

The modules are the import closure of the stage's own file, imports inside functions included. It
is cut where a choice is made: at the registry, so that a method's file counts for its own cells
alone, and at what only some arms use. Modules that move values and decide none (``GLUE``) count for
nothing, and so do comments and docstrings.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import tokenize
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdci.errors import StorageError
from kdci.store.artifacts import replace_file
from kdci.store.hashing import hash_json

GLUE = (
    "kdci.config.block",  # values reach a stage by the params, which are tracked
    "kdci.config.by_method",
    "kdci.config.data",
    "kdci.config.deconfounding",
    "kdci.config.grid",
    "kdci.config.open_world",
    "kdci.config.params",
    "kdci.config.params_file",
    "kdci.deconfounding.arms",  # an arm's own values are part of the hash
    "kdci.errors",  # wording
    "kdci.graph",  # places and names
    "kdci.substitution.registry",  # picks the method's own file, which counts
    "kdci.store",  # writes, verifies and restores what others computed
    "stages.main",  # arguments and exit codes
    "stages._progress",  # output on a terminal
    "stages.session",  # lock, checkpoints, card
    "stages.signals",  # stopping
    "stages._system",  # looks at the process, and tells the timing alone
)
"""Modules, and packages with all that is in them, that decide nothing of a result."""
_HASH_CHARS = 16


@dataclass(frozen=True)
class Code:
    """The code of some nodes.

    Attributes:
        name: Readable, unique in a graph.
        roots: Dotted modules to start from.
        cut: Modules, or packages, that the closure does not enter.
        values: Text that the result depends on like code: an arm's definition.
    """

    name: str
    roots: tuple[str, ...]
    cut: frozenset[str] = frozenset()
    values: str = ""


@dataclass(frozen=True)
class Source:
    """A module's file, read.

    Attributes:
        digest: Hash of its text without comments and docstrings.
        imports: Dotted names that it imports, those for type checkers left out.
    """

    digest: str
    imports: tuple[str, ...]


class Sources:
    """Reads modules, each once; a file keeps what earlier processes read.

    Args:
        project: A folder whose own copy of the packages comes before the installed one, as it does
            for a stage that is started there; None: none does.
        memory: A file that may be written; None: nothing is kept.
    """

    def __init__(self, project: Path | None = None, memory: Path | None = None) -> None:
        self._project = project
        self._memory = memory
        self._known = {} if memory is None else _remembered(memory)
        self._read: dict[Path, Source] = {}
        self._roots: dict[str, tuple[Path, ...]] = {}
        self._files: dict[str, Path | None] = {}
        self._is_news = False

    def fingerprint(self, code: Code) -> str:
        """Return the hash of a node's code."""
        files = [(module, self._source(file).digest) for module, file in self.closure(code).items()]
        return hash_json([sorted(files), code.values])[:_HASH_CHARS]

    def closure(self, code: Code) -> dict[str, Path]:
        """Return the modules that the code depends on, with their files."""
        found: dict[str, Path] = {}
        tops = {root.partition(".")[0] for root in code.roots} | {"kdci", "stages"}
        waiting = list(code.roots)
        while waiting:
            module = waiting.pop()
            file = None if module in found else self._file(module)
            if file is None or _lies_in(module, (*GLUE, *(code.cut - {*code.roots}))):
                continue
            found[module] = file
            package = module.rpartition(".")[0]
            waiting += [package] if package else []
            for name in self._source(file).imports:
                if name.partition(".")[0] in tops:
                    waiting += [name if self._file(name) else name.rpartition(".")[0]]
        return dict(sorted(found.items()))

    def remember(self) -> None:
        """Write down what was read; where that can not be done it is read again next time."""
        if self._memory is not None and self._is_news:
            with suppress(StorageError):
                replace_file(self._memory, json.dumps(self._known).encode())

    def _file(self, module: str) -> Path | None:
        """Return the file of a module, without importing anything; None: it is no module."""
        if module not in self._files:
            self._files[module] = self._find(module)
        return self._files[module]

    def _find(self, module: str) -> Path | None:
        top, *rest = module.split(".")
        if top not in self._roots and self._project and (self._project / top).is_dir():
            self._roots[top] = (self._project / top,)
        if top not in self._roots:
            spec = importlib.util.find_spec(top)
            places = (spec.submodule_search_locations or ()) if spec is not None else ()
            self._roots[top] = tuple(Path(place) for place in places)
            if spec is not None and not places and spec.origin and not rest:  # a lone file
                return Path(spec.origin)
        for root in self._roots[top]:
            place = root.joinpath(*rest)
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if file.is_file():
                    return file
        return None

    def _source(self, file: Path) -> Source:
        if file not in self._read:
            stat, key = file.stat(), str(file)
            stamp = [stat.st_mtime_ns, stat.st_size]
            known = self._known.get(key)
            if known is None or known[:2] != stamp:
                source = read_source(file.read_text(encoding="utf-8"))
                known = self._known[key] = [*stamp, source.digest, list(source.imports)]
                self._is_news = True
            self._read[file] = Source(known[2], tuple(known[3]))
        return self._read[file]


def read_source(text: str) -> Source:
    """Return what counts of a module's text."""
    tree = ast.parse(text)
    digest = hashlib.sha256(_meaningful(text, tree).encode()).hexdigest()
    return Source(digest, tuple(sorted({*_imports(tree)})))


def _remembered(file: Path) -> dict[str, list]:  # type: ignore[type-arg]
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _lies_in(module: str, places: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _imports(tree: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from _imports(child)


def _meaningful(text: str, tree: ast.AST) -> str:
    """Return a module's text without comments, docstrings, and blank lines."""
    lines: list[str | None] = [*text.splitlines()]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, column = token.start
        line = lines[row - 1] if row <= len(lines) else None
        if token.type == tokenize.COMMENT and line is not None:
            lines[row - 1] = line[:column].rstrip()
        elif token.type == tokenize.NL and line is not None and not line.strip():
            lines[row - 1] = None  # blank, and within no string
    for alone in _docstrings(tree):
        first, last = alone.lineno, alone.end_lineno or alone.lineno
        if not (lines[first - 1] or "")[: alone.col_offset].strip():
            lines[first - 1 : last] = [None] * (last - first + 1)
    return "\n".join(line for line in lines if line is not None)


def _docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    """Yield strings that stand for themselves: docstrings, and those below attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield from [node] if isinstance(node.value.value, str) else []
