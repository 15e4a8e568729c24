"""The files' side of tracking: which artifacts the grid asks for, and what they say."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from kdci.artifacts import CARD, hash_file, open_artifact, read_card, storage_errors
from kdci.config import Grid, hash_json
from kdci.errors import IntegrityError
from kdci.layout import Cell, Layout, cells, control_cells
from pipelines.tracking.readings import RERUN, Timing, metric_rows, read_timing


@dataclass(frozen=True)
class Slot:
    """An artifact that the current grid asks for.

    Attributes:
        dvc_stage: The DVC stage that makes it, ``stage@axes``.
        kind: Kind of artifact.
        path: Its folder.
        artifact: The same, relative to the project folder.
        fields: The axes it belongs to.
        cell: Its cell, if it belongs to one alone.
    """

    dvc_stage: str
    kind: str
    path: Path
    artifact: str
    fields: dict[str, str]
    cell: Cell | None = None

    @property
    def stage(self) -> str:
        """Name of the stage, without the axes."""
        return self.dvc_stage.partition("@")[0]


def slots(layout: Layout, grid: Grid) -> list[Slot]:
    """Return all artifacts of ``grid``, each after those it is made from."""
    found = [
        _slot(layout, "teacher", "teacher", layout.teacher(t), teacher=t) for t in grid.teachers
    ]
    of_methods, of_controls = list(cells(grid)), list(control_cells(grid))
    pools = dict.fromkeys((cell.teacher, cell.method, cell.pool_seed) for cell in of_methods)
    controls = dict.fromkeys((cell.teacher, cell.method, cell.pool_seed) for cell in of_controls)
    for stage, kind, place, keys in (
        ("substitute", "pool", layout.pool, pools),
        ("substitute_control", "pool", layout.pool, controls),
        ("dictionary", "dictionary", layout.dictionary, pools),
    ):
        for teacher, method, seed in keys:
            axes = {"teacher": teacher, "method": method, "pool_seed": str(seed)}
            found.append(_slot(layout, stage, kind, place(teacher, method, seed), **axes))
    for cell in of_methods:
        found.append(_student_slot(layout, f"distill_{cell.variant}", cell))
    for cell in of_controls:
        found.append(_student_slot(layout, "distill_control", cell))
    for stage, of_stage in (("evaluate", of_methods), ("evaluate_control", of_controls)):
        groups = dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in of_stage)
        for teacher, student, method in groups:
            axes = {"teacher": teacher, "student": student, "method": method}
            folder = layout.evaluation(teacher, student, method)
            found.append(_slot(layout, stage, "evaluation", folder, **axes))
    return found


def _student_slot(layout: Layout, stage: str, cell: Cell) -> Slot:
    axes = {name: str(value) for name, value in cell.asdict().items() if name != "variant"}
    slot = _slot(layout, stage, "student", layout.student(cell), **axes)
    return replace(slot, fields={**axes, "variant": cell.variant}, cell=cell)


def _slot(layout: Layout, stage: str, kind: str, path: Path, **axes: str) -> Slot:
    artifact = path.relative_to(layout.root).as_posix()
    return Slot(f"{stage}@{'-'.join(axes.values())}", kind, path, artifact, axes)


@dataclass(frozen=True)
class Finished:
    """A whole artifact: one finished execution of a stage.

    Attributes:
        slot: What it is.
        card: What its card says.
        metrics: Its metrics, one row a step.
        timing: Its wall times.
        rows: Of an evaluation: the scored cells.
        curves: Of an evaluation: the learning curve of each cell.
        written: Unix seconds at which it appeared.
    """

    slot: Slot
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
    slot: Slot, layout: Layout, *, trusted: Container[tuple[str, str]]
) -> Finished | None:
    """Read the artifact of a slot; None: there is none.

    Args:
        slot: Which one.
        layout: Where the wall times are.
        trusted: Artifact paths with content hashes that were verified before: those files are
            not hashed again.

    Raises:
        KdciError: It is damaged or not readable.
    """
    if not slot.path.exists():
        return None
    with _reading(slot.path):
        card = read_card(slot.path, kind=slot.kind)
        if slot.kind == "evaluation" or (slot.artifact, card["content"]) not in trusted:
            card = open_artifact(slot.path, kind=slot.kind).card
        rows: dict[Cell, dict[str, Any]] = {}
        curves: dict[Cell, list[dict[str, Any]]] = {}
        if slot.kind == "evaluation":
            rows = {_cell_of(row): row for row in _read_list(slot.path / "cells.json")}
            for curve in _read_list(slot.path / "curves.json"):
                curves[_cell_of(curve)] = list(curve["points"])
        metrics = metric_rows(slot.path / "metrics.jsonl")
        timing, written = read_timing(layout, slot.path), (slot.path / CARD).stat().st_mtime
        return Finished(slot, card, metrics, timing, rows, curves, written)


def _cell_of(row: Mapping[str, Any]) -> Cell:
    return Cell(**{field.name: row[field.name] for field in dataclass_fields(Cell)})


def _read_list(file: Path) -> list[dict[str, Any]]:
    return list(json.loads(file.read_text(encoding="utf-8")))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with the content of ``path`` into one of our errors."""
    try:
        with storage_errors(path):
            yield
    except (KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError(str(path), "does not hold what it should", RERUN) from None


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
        for file in [results, layout.report / "report.md", *figures]
        if file.is_file()
    }
    content = hash_json({name: hash_file(file) for name, file in files.items()})
    return Report(files, content, results.stat().st_mtime)
