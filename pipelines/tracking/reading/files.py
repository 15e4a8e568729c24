"""The files' side of tracking: what the artifacts that the grid asks for say."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.errors import IntegrityError
from kdci.graph.node import Node
from kdci.store.artifacts import CARD, open_artifact, read_card, storage_errors
from kdci.store.hashing import hash_file, hash_json
from kdci.store.layout import Cell, Layout
from pipelines.tracking.reading.readings import RERUN, Timing, metric_rows, read_timing


@dataclass(frozen=True)
class Finished:
    """A whole artifact: one finished execution of a stage.

    Attributes:
        node: What it is.
        artifact: Its folder, relative to the project folder.
        card: What its card says.
        metrics: Its metrics, one row a step.
        timing: Its wall times.
        rows: Of an evaluation: the scored cells.
        curves: Of an evaluation: the learning curve of each cell.
        written: Unix seconds at which it appeared.
    """

    node: Node
    artifact: str
    card: dict[str, Any]
    metrics: list[dict[str, float]]
    timing: Timing
    rows: dict[Cell, dict[str, Any]]
    curves: dict[Cell, list[dict[str, Any]]]
    written: float

    @property
    def content(self) -> str:
        """Hash over its files."""
        return str(self.card["content"])

    @property
    def params(self) -> dict[str, Any]:
        """Params blocks it depends on; an imported teacher has none."""
        return dict(self.card.get("params", {}))

    @property
    def params_hash(self) -> str:
        """Hash of its params blocks."""
        return hash_json(self.params)

    @property
    def parents(self) -> dict[str, str]:
        """Content hashes of what it was made from, by role."""
        return dict(self.card.get("parents", {}))


def read_finished(
    node: Node, layout: Layout, *, trusted: Container[tuple[str, str]]
) -> Finished | None:
    """Read the artifact of a node; None: there is none.

    Args:
        node: Which one.
        layout: The project's places.
        trusted: Artifact paths with content hashes that were verified before: those files are
            not hashed again.

    Raises:
        KdciError: It is damaged or not readable.
    """
    path, artifact = node.artifact, layout.relative(node.artifact)
    if not path.exists():
        return None
    rows: dict[Cell, dict[str, Any]] = {}
    curves: dict[Cell, list[dict[str, Any]]] = {}
    try:
        with storage_errors(path):
            card = read_card(path, kind=node.kind)
            if node.kind == "evaluation":
                scored = open_artifact(path, kind=node.kind)
                card = scored.card
                rows = {Cell.of(row): row for row in scored.json("cells.json")}
                curves = {Cell.of(row): list(row["points"]) for row in scored.json("curves.json")}
            elif (artifact, card["content"]) not in trusted:
                card = open_artifact(path, kind=node.kind).card
            metrics = metric_rows(path / "metrics.jsonl")
            timing, written = read_timing(node), (path / CARD).stat().st_mtime
    except (KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError(str(path), "does not hold what it should", RERUN) from None
    return Finished(node, artifact, card, metrics, timing, rows, curves, written)


@dataclass(frozen=True)
class Report:
    """The report folder: its files by name, and a hash over them."""

    files: dict[str, Path]
    content: str
    written: float


def read_report(layout: Layout) -> Report | None:
    """Read the report; None: there is none, or it is another preset's.

    Raises:
        IntegrityError: Its results are damaged.
    """
    results = layout.report / "results.json"
    if not results.is_file():
        return None
    try:
        rows = json.loads(results.read_text(encoding="utf-8"))
        presets = {row["preset"] for row in rows}
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(str(results), "is not a list of results", RERUN) from None
    if presets - {layout.preset}:
        return None
    figures = sorted((layout.report / "figures").rglob("*"))
    files = {
        file.relative_to(layout.report).as_posix(): file
        for file in [results, layout.report / "ledger.json", layout.report / "report.md", *figures]
        if file.is_file()
    }
    content = hash_json({name: hash_file(file) for name, file in files.items()})
    return Report(files, content, results.stat().st_mtime)
