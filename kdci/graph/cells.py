"""cells.yaml: the graph as dvc.yaml's templates read it, generated and committed.

DVC's templates know no condition: a dependency that a cell does not have is another one of its own
again, which DVC takes once. Each cell is a line, so that a change of the grid is a change of lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdci.errors import UserError
from kdci.graph.build import Graph
from kdci.graph.code import Sources
from kdci.graph.node import KINDS, Node, require_cell_name
from kdci.store.artifacts import replace_file

CELLS_FILE = "cells.yaml"
CELLS_STAGE = "cells"
"""The entry of dvc.yaml that looks whether the file is current, before anything runs."""
LOOKED_FILE = "artifacts/cells.txt"
"""What that entry makes and every teacher depends on; its text never changes. Whatever DVC is asked
for, the look comes first."""
RENEWED = UserError(
    CELLS_FILE,
    "did not say what params.yaml and the code ask for; it is renewed",
    "run the same command again",
)
_HEAD = """\
# What dvc.yaml runs: made from params.yaml and the code, never edited. `kdci preset`, `check`,
# `run` and `sweep` keep it current; a plain `dvc repro` renews it, and asks to be run again.
"""


def renew_cells(graph: Graph) -> bool:
    """Write cells.yaml if it does not say what the graph is; tell whether it did not.

    Raises:
        UserError: A name can not be part of a command.
        StorageError: It can not be written.
    """
    root = graph.layout.root
    text = cells_text(graph, sources_of(graph))
    looked = f"Whether {CELLS_FILE} is current was looked at.\n"
    if _text_of(root / LOOKED_FILE) != looked:
        replace_file(root / LOOKED_FILE, looked.encode())
    if _text_of(root / CELLS_FILE) == text:
        return False
    replace_file(root / CELLS_FILE, text.encode())
    return True


def require_current(graph: Graph, node: Node, code: str) -> None:
    """Check that cells.yaml says of a node what the graph does.

    Args:
        graph: The graph.
        node: One of its nodes.
        code: Fingerprint of the node's code.

    Raises:
        UserError: It does not: what DVC records of this run would be wrong.
    """
    lines = {*(_text_of(graph.layout.root / CELLS_FILE) or "").splitlines()}
    if not {*_entries(graph, node), _line(1, node.code.name, code)} <= lines:
        what = f"does not say of {node.name} what params.yaml and the code ask for"
        raise UserError(CELLS_FILE, what, "run `dvc repro` without a target, or `kdci run`")


def sources_of(graph: Graph) -> Sources:
    """Return a reader of the code that remembers, in the project's work folder."""
    return Sources(graph.layout.root, memory=graph.layout.work / "code.json")


def cells_text(graph: Graph, sources: Sources) -> str:
    """Return what cells.yaml is to say.

    Raises:
        UserError: A name can not be part of a command.
    """
    codes = {node.code.name: node.code for node in graph.nodes.values()}
    lines = ["code:"]
    lines += [_line(1, name, sources.fingerprint(code)) for name, code in codes.items()]
    sources.remember()
    lines.append("students:")
    lines += [line for node in graph.of_stage("evaluate") for line in _students(node)]
    lines.append("cells:")
    for stage in KINDS:
        own = [node for node in graph.of_stage(stage) if node.cell]
        lines.append(f"  {stage}:" if own else f"  {stage}: {{}}")
        lines += [_cell(graph, node) for node in own]
    return _HEAD + "\n".join(lines) + "\n"


def _text_of(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _line(depth: int, key: str, value: Any) -> str:
    return f"{'  ' * depth}{json.dumps(key)}: {json.dumps(value)}"


def _entries(graph: Graph, node: Node) -> Iterator[str]:
    """Yield the lines that are about a node."""
    if node.cell:
        yield _cell(graph, node)
    if node.stage == "evaluate":
        yield from _students(node)


def _students(node: Node) -> Iterator[str]:
    """Yield the line of the students that an evaluation scores, in their order."""
    own = [role for role, parent in node.parents.items() if parent.kind == "student"]
    yield _line(1, _key(node.cell), own)


def _key(cell: str) -> str:
    """Return a cell's name as a params key, where a dot would be a level."""
    return cell.replace(".", "_")


def _cell(graph: Graph, node: Node) -> str:
    root = graph.layout.root
    places = {"out": node.artifact, "times": node.timing, **_places_read(node)}
    fields = {name: path.relative_to(root).as_posix() for name, path in places.items()}
    keys = {"code": node.code.name, **_keys_read(node)}
    return _line(2, require_cell_name(node.cell), {**keys, **fields})


def _places_read(node: Node) -> dict[str, Path]:
    """Return the places that the node's entry of dvc.yaml names as dependencies."""
    paths = {role: parent.path for role, parent in node.parents.items()}
    if node.stage == "evaluate":
        students = [parent.path for parent in node.parents.values() if parent.kind == "student"]
        pools = [parent.path for parent in node.parents.values() if parent.kind == "pool"]
        # Of any number of either: the folders that hold them all.
        return {"teacher": paths["teacher"], "students": students[0].parents[1],
                "pools": pools[0].parent}  # fmt: skip
    if node.stage == "distill":
        return {"dictionary": paths["pool"], **paths}
    roles = {"substitute": ("teacher",), "shift": ("teacher", "base"),
             "dictionary": ("teacher", "pool")}  # fmt: skip
    return {role: paths[role] for role in roles.get(node.stage, ())}


def _keys_read(node: Node) -> dict[str, str]:
    """Return the keys of params.yaml that differ between the cells of the node's stage."""
    if node.stage == "evaluate":
        return {"scored": _key(node.cell)}
    keys = [*node.blocks.values()]
    if node.stage == "teacher":
        return {"data": node.blocks["data"]}
    found = {"name": node.blocks["data.name"], "facts": node.blocks["data.facts"]}
    for key in keys:
        name = {"methods": "images", "shifts": "images", "recipes": "recipe"}.get(key.split(".")[0])
        found |= {} if name is None else {name: key}
    if node.stage == "distill":
        settings = ("strata", "max_repeats", "tau")
        optional = ("shift", "compensation", *(f"intervention.{name}" for name in settings))
        found |= {k.rpartition(".")[2]: k if k in keys else "distill" for k in optional}
    return found
