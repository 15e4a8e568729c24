"""The files' side of tracking: which artifacts the grid asks for, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from kdci.config.params import Grid
from kdci.deconfounding.arms import BASE_ARMS, OTHER_ARM
from kdci.errors import IntegrityError
from kdci.store.artifacts import CARD, hash_file, open_artifact, read_card, storage_errors
from kdci.store.hashing import hash_json
from kdci.store.layout import Cell, Layout, cells, control_cells, shift_cells
from pipelines.tracking.reading.readings import RERUN, Timing, metric_rows, read_timing


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
    of_methods = list(cells(grid))
    found = _pool_slots(layout, grid, of_methods)
    if grid.others:
        nothing: tuple[str, ...] = ()
        other = grid.model_copy(
            update={"teachers": grid.others, "students": grid.others, "pairs": nothing}
        )
        theirs = _pool_slots(layout.other, other, list(cells(other)), "_other")
        found = [*theirs, *found]
    named = [_student_slot(layout, *_distill_stage(cell, grid)) for cell in of_methods]
    named += _evaluation_slots(layout, of_methods, "evaluate")
    controls = list(control_cells(grid))
    pools = _cell_slots(layout, "substitute_control", layout.pool, controls)
    students = [_student_slot(layout, cell, "distill_control") for cell in controls]
    found += [_without_seeds(slot) for slot in pools]
    named += [_without_seeds(slot) for slot in students]
    named += _evaluation_slots(layout, controls, "evaluate_control")
    found += [_by_pair(slot, grid) for slot in named]
    shifts = list(shift_cells(grid))
    found += _cell_slots(layout, "shift", layout.pool, shifts)
    found += _cell_slots(layout, "dictionary_shift", layout.dictionary, shifts)
    found += [_student_slot(layout, cell, "distill_shift", cell.variant) for cell in shifts]
    return [*found, *_evaluation_slots(layout, shifts, "evaluate_shift")]


def _by_pair(slot: Slot, grid: Grid) -> Slot:
    """Return the slot of a student or its scores as a grid of pairs names its stage.

    DVC names an axis of mappings by their place in the list: `distill_kdci_pair@pair0-fast-0-0`.
    """
    if not grid.pairs:
        return slot
    teacher, student = slot.fields["teacher"], slot.fields["student"]
    place = grid.all_pairs.index((teacher, student))
    rest = slot.dvc_stage.removeprefix(f"{slot.stage}@{teacher}-{student}")
    return replace(slot, dvc_stage=f"{slot.stage}_pair@pair{place}{rest}")


def _without_seeds(slot: Slot) -> Slot:
    """Return a control's slot: its entry of ``dvc.yaml`` has no axis of seeds."""
    kept = [
        value for name, value in slot.fields.items() if name in ("teacher", "student", "method")
    ]
    return replace(slot, dvc_stage=f"{slot.stage}@{'-'.join(kept)}")


def _pool_slots(layout: Layout, grid: Grid, of_methods: list[Cell], ending: str = "") -> list[Slot]:
    """Return teachers, pools and dictionaries of one model's pipeline."""
    # The other model has an axis of its own, or its pools would pass for the teacher's.
    axis = "other" if ending else "teacher"
    found = [
        _slot(layout, f"teacher{ending}", "teacher", layout.teacher(name), **{axis: name})
        for name in grid.teachers
    ]
    found += _cell_slots(layout, f"substitute{ending}", layout.pool, of_methods, axis)
    return found + _cell_slots(layout, f"dictionary{ending}", layout.dictionary, of_methods, axis)


def _cell_slots(
    layout: Layout,
    stage: str,
    place: Callable[[str, str, int], Path],
    of_stage: list[Cell],
    axis: str = "teacher",
) -> list[Slot]:
    """Return a pool's or dictionary's slot for each teacher, method and pool seed of cells."""
    kind = "dictionary" if stage.startswith("dictionary") else "pool"
    keys = dict.fromkeys((cell.teacher, cell.method, cell.pool_seed) for cell in of_stage)
    found = []
    for teacher, method, seed in keys:
        axes = {axis: teacher, "method": method, "pool_seed": str(seed)}
        found.append(_slot(layout, stage, kind, place(teacher, method, seed), **axes))
    return found


def _evaluation_slots(layout: Layout, of_stage: list[Cell], stage: str) -> list[Slot]:
    groups = dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in of_stage)
    return [
        _slot(
            layout,
            stage,
            "evaluation",
            layout.evaluation(teacher, student, method),
            teacher=teacher,
            student=student,
            method=method,
        )
        for teacher, student, method in groups
    ]


def _distill_stage(cell: Cell, grid: Grid) -> tuple[Cell, str, str]:
    """Return a method's cell, its entry of ``dvc.yaml``, and the axis that only this has."""
    if cell.variant in BASE_ARMS:
        return cell, f"distill_{cell.variant}", ""
    if cell.variant == OTHER_ARM:
        # Among listed pairs each has a lender of its own, so there it is no axis.
        return cell, "distill_other", "" if grid.pairs else grid.others[0]
    return cell, "distill_arm", cell.variant


def _student_slot(layout: Layout, cell: Cell, stage: str, beside: str = "") -> Slot:
    """Return a student's slot; its name in DVC holds ``beside``, if any, after the method."""
    axes = {name: str(value) for name, value in cell.asdict().items() if name != "variant"}
    slot = _slot(layout, stage, "student", layout.student(cell), **axes)
    if beside:
        values = [*list(axes.values())[:3], beside, *list(axes.values())[3:]]
        slot = replace(slot, dvc_stage=f"{stage}@{'-'.join(values)}")
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
        for file in [results, layout.report / "ledger.json", layout.report / "report.md", *figures]
        if file.is_file()
    }
    content = hash_json({name: hash_file(file) for name, file in files.items()})
    return Report(files, content, results.stat().st_mtime)
