"""Looks after what stages leave on disk: `kdci verify` and `kdci clean`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.errors import IntegrityError, KdciError, StorageError
from kdci.graph.build import Graph, graph_of
from kdci.graph.cells import sources_of
from kdci.graph.code import Sources
from kdci.graph.node import Node
from kdci.graph.standing import card_at, has_other_parents
from kdci.store.artifacts import REBUILD, open_artifact, storage_errors
from kdci.store.hashing import hash_json
from kdci.store.layout import Layout
from pipelines.checking.diagnosis.locks import held_if_free

_UNFINISHED = re.compile(r"\.(?P<artifact>.+)\.(old|[a-z0-9_]{8})\.tmp")
"""Names that ``kdci.store.artifacts`` gives folders on their way into or out of place."""


@dataclass(frozen=True)
class Verification:
    """What re-hashing the artifacts of the current params found.

    Attributes:
        intact: Those whose artifact matches its card.
        missing: Those whose artifact is not built.
        problems: One error for each artifact that is damaged or can not be read.
    """

    intact: list[Node] = field(default_factory=list)
    missing: list[Node] = field(default_factory=list)
    problems: list[KdciError] = field(default_factory=list)


def verify(params: Params, layout: Layout) -> Verification:
    """Re-hash every artifact of the current params against its card."""
    found = Verification()
    for node in graph_of(params, layout.root).makers:
        if not os.path.lexists(node.artifact):
            found.missing.append(node)
            continue
        try:
            with storage_errors(node.artifact):
                open_artifact(node.artifact, kind=node.kind)
            found.intact.append(node)
        except StorageError as error:
            found.problems.append(error)
        except KdciError as error:
            # What is there but is no artifact of its kind is damage too, not an absent parent.
            what = f"{error.what}; made by {node.name}"
            found.problems.append(IntegrityError(error.subject, what, REBUILD))
    return found


@dataclass(frozen=True)
class Removal:
    """A folder that nothing will use again.

    Attributes:
        path: The folder.
        reason: Why.
        num_bytes: Size of its files.
    """

    path: Path
    reason: str
    num_bytes: int


def clean(params: Params, layout: Layout, *, dry_run: bool = False) -> list[Removal]:
    """Remove checkpoints that no run of the current params and code goes on from.

    Also removed is what killed writers left beside artifacts. Whatever a live process works on
    stays.

    Args:
        params: The current params.
        layout: Where everything lies.
        dry_run: Only tell what would be removed.

    Raises:
        StorageError: A folder can not be removed.
    """
    with storage_errors(layout.work):
        return [
            *_clean_work(params, layout, dry_run=dry_run),
            *_clean_unfinished(layout, dry_run=dry_run),
        ]


def _unless_running(layout: Layout, name: str) -> AbstractContextManager[bool]:
    """Hold a stage's lock for the block; False: a live process holds it."""
    folder = layout.work / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return held_if_free(folder / f"{name}.lock")


def _clean_work(params: Params, layout: Layout, *, dry_run: bool) -> Iterator[Removal]:
    graph = graph_of(params, layout.root)
    sources = sources_of(graph)
    for stage_folder in _folders(layout.work / "work"):
        with _unless_running(layout, stage_folder.name) as free:
            for folder in _folders(stage_folder) if free else []:
                reason = _orphaned(folder, graph, sources)
                if reason is not None:
                    yield _remove(folder, reason, dry_run=dry_run)
            if free and not dry_run and not any(stage_folder.iterdir()):
                stage_folder.rmdir()


def _orphaned(folder: Path, graph: Graph, sources: Sources) -> str | None:
    """Return why no run will go on from a work folder; None: one may."""
    node, identity = graph.nodes.get(folder.parent.name), _identity(folder)
    if identity is None:
        return "does not say what it is of"
    if node is None:
        return "not in the grid of params.yaml"
    if identity["params"] != graph.values(node):
        return "begun with other params"
    if identity["code"] != sources.fingerprint(node.code):
        return "begun with other code"
    if has_other_parents(node, identity["parents"]):
        return "begun from artifacts that were made anew"
    return "its artifact is in place" if _is_finished(node, identity["key"]) else None


def _is_finished(node: Node, key: str) -> bool:
    card = card_at(node.artifact, node.kind)
    if card is None:
        return False
    made_of = {"params": card["params"], "parents": card["parents"], "code": card["code"]["hash"]}
    return hash_json(made_of) == key


def _clean_unfinished(layout: Layout, *, dry_run: bool) -> Iterator[Removal]:
    # Listed before asking who is alive: a writer names its artifact in its work folder first,
    # so of what is listed here every live writer is found.
    leftovers = list(_unfinished(layout.root / "artifacts"))
    being_written = set(_artifacts_at_work(layout)) if leftovers else set()
    for folder, artifact in leftovers:
        if artifact not in being_written and folder.is_dir():
            yield _remove(folder, "left by a killed writer", dry_run=dry_run)


def _unfinished(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield every unfinished folder with the artifact that it was to be."""
    for parent, names, _ in os.walk(root):
        for name in list(names):
            match = _UNFINISHED.fullmatch(name)
            if match:
                names.remove(name)
                yield Path(parent, name), Path(parent, match["artifact"])


def _artifacts_at_work(layout: Layout) -> Iterator[Path]:
    for stage_folder in _folders(layout.work / "work"):
        with _unless_running(layout, stage_folder.name) as free:
            identities = [] if free else [_identity(folder) for folder in _folders(stage_folder)]
        yield from (layout.root / identity["artifact"] for identity in identities if identity)


def _identity(folder: Path) -> dict[str, Any] | None:
    """Return what a work folder says it is of; None: nothing that can be read."""
    try:
        identity = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
        known = {key: identity[key] for key in ("artifact", "params", "parents", "code", "key")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return known


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.is_symlink())


def _remove(folder: Path, reason: str, *, dry_run: bool) -> Removal:
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    num_bytes = sum(file.lstat().st_size for file in files)
    if not dry_run:
        shutil.rmtree(folder)
    return Removal(folder, reason, num_bytes)
