"""What `dvc repro` makes of the current params: every stage at every point of the grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kdci.artifacts import read_card
from kdci.config import Grid, Params
from kdci.errors import KdciError
from kdci.layout import Layout, control_cells

KINDS = {
    "teacher": "teacher",
    "substitute": "pool",
    "dictionary": "dictionary",
    "distill_vanilla": "student",
    "distill_kdci": "student",
    "evaluate": "evaluation",
}
"""The kind of artifact each stage makes."""
CONTROLLED = ("substitute", "distill_vanilla", "evaluate")
"""Stages that also run for each control, as `<stage>_control` in ``dvc.yaml``."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage of ``dvc.yaml`` at one point of the grid.

    Attributes:
        name: Its name in DVC.
        kind: What it makes.
        cell: Values of its axes.
        params: The blocks it depends on, by dotted key.
        artifact: Where its result lies.
        source: The stage's own file.
    """

    name: str
    kind: str
    cell: dict[str, str | int]
    params: dict[str, Any]
    artifact: Path
    source: Path

    def is_in_place(self) -> bool:
        """Tell whether the artifact is there and was made with these params."""
        try:
            return bool(read_card(self.artifact, kind=self.kind)["params"] == self.params)
        except (KdciError, OSError):
            return False


def planned_stages(params: Params, layout: Layout) -> list[PlannedStage]:
    """Return what `dvc repro` makes of the current params, parents first, the report left out."""
    # Imported here: the stages' modules load torch.
    from stages import dictionary, distill, evaluate, substitute, teacher
    from stages._session import StageIdentity

    planned = []
    for module in (teacher, substitute, dictionary, distill, evaluate):
        for stage in module.STAGES:
            for cell in _points(params.grid, stage.name, stage.axes):
                blocks = params.blocks(*stage.keys(cell))
                identity = StageIdentity(stage.name, cell, blocks, stage.artifact(layout, cell))
                kind, source = KINDS[stage.name], Path(str(module.__file__))
                planned.append(
                    PlannedStage(identity.name, kind, cell, blocks, identity.artifact, source)
                )
    return planned


def _points(grid: Grid, stage: str, axes: Sequence[str]) -> Iterator[dict[str, str | int]]:
    """Yield the values of a stage's axes: the product over the methods, then the controls."""
    for values in product(*(getattr(grid, f"{axis}s") for axis in axes)):
        yield dict(zip(axes, values, strict=True))
    if stage in CONTROLLED:
        points = [{axis: cell.asdict()[axis] for axis in axes} for cell in control_cells(grid)]
        yield from (point for i, point in enumerate(points) if point not in points[:i])
