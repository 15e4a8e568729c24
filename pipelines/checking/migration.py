"""`kdci migrate`: DVC's record of what was made before stages were called with a cell's name.

Only dvc.lock is written. Artifacts and their cards stay as they are and where they are, and an
artifact is taken over if its card names the params and the parents that are there now and every
byte is the card's. Its hash of the code is over other files than today's, so it is not compared:
whoever migrates says that the code has made these results. From then on DVC compares, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.config.params_file import load_params
from kdci.graph.build import Graph
from kdci.graph.cells import CELLS_FILE, CELLS_STAGE
from kdci.graph.node import Node
from kdci.graph.standing import card_at, difference
from kdci.store.layout import Layout
from pipelines.explaining.differences import LOCK_FILE, lock_entries
from pipelines.graph.current import current_graph
from pipelines.graph.dag import read_dag
from pipelines.running.workspace import only_runner
from pipelines.sweeping.dvc_record import commit

OLD_HASH_CHARS = 64
"""Of the hash of all sources, which cards had before each stage had a hash of its own."""


@dataclass(frozen=True)
class Migration:
    """What became of a project.

    Attributes:
        taken: Stages whose artifact DVC knows now.
        left: Why the others were not taken over, by stage.
        dropped: Entries of dvc.lock that are gone.
    """

    taken: list[str]
    left: dict[str, str]
    dropped: list[str]


def migrate(root: Path) -> Migration:
    """Record in DVC what is in place and was made before this graph; a second call changes nothing.

    Raises:
        UserError: The params are not valid, or DVC can not read the project.
        BusyError: Somebody else runs stages here.
    """
    with only_runner(Layout(root, ""), "kdci migrate"):
        graph = current_graph(root, load_params(root / "params.yaml"))
        known = {*read_dag(root, status=False).stages, CELLS_STAGE}
        entries = lock_entries(root)
        old = {name: entry for name, entry in entries.items() if _is_old(name, entry)}
        objections = dict(_objections(graph, {*entries} - {*old}, old))
        sound = [name for name, problem in objections.items() if problem is None]
        outcome = {**objections, **commit(root, sound)}
        left = {name: problem for name, problem in outcome.items() if problem is not None}
        gone = {name: entry for name, entry in old.items() if name not in known}
        needed = {graph.nodes[name].artifact for name in left}
        dropped = [name for name in gone if _is_dispensable(root, gone[name], needed)]
        _drop(root, dropped)
        return Migration([name for name in outcome if name not in left], left, dropped)


def _drop(root: Path, names: Sequence[str]) -> None:
    from dvc.utils.serialize import modify_yaml

    if names:
        with modify_yaml(str(root / LOCK_FILE)) as lock:
            for name in names:
                del lock["stages"][name]


def _is_old(name: str, entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry was made before stages depended on their line of cells.yaml."""
    return name != CELLS_STAGE and CELLS_FILE not in entry.get("params", {})


def _is_dispensable(root: Path, entry: Mapping[str, Any], needed: Collection[Path]) -> bool:
    """Tell whether nobody needs an entry to find its results in DVC's cache."""
    places = [root / out["path"] for out in entry.get("outs", ())]
    return all(os.path.lexists(place) and place not in needed for place in places)


def _objections(
    graph: Graph, recorded: set[str], old: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str | None]]:
    """Yield what was once made and DVC does not know, each with why it is not taken over."""
    known_places = {out["path"] for entry in old.values() for out in entry.get("outs", ())}
    for node in graph.makers:
        if node.name in recorded:
            continue
        place = node.artifact.relative_to(graph.layout.root).as_posix()
        if os.path.lexists(node.artifact):
            yield node.name, _objection(graph, node)
        elif place in known_places:
            yield node.name, f"{place} is not in the folder: `dvc pull` with the earlier version"


def _objection(graph: Graph, node: Node) -> str | None:
    card = card_at(node.artifact, node.kind)
    if card is not None and len(card["code"]["hash"]) != OLD_HASH_CHARS:
        return "was made by this version, and DVC did not record it: `kdci run` sees to it"
    if not node.timing.is_file():
        return f"{node.timing.relative_to(graph.layout.root)} is missing"
    return difference(graph, node, None)
