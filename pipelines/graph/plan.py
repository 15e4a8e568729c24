"""What `dvc repro` makes of the current params: every stage at every point of the grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.config.params import Grid, Params
from kdci.deconfounding.arms import ARMS
from kdci.errors import KdciError
from kdci.store.artifacts import read_card
from kdci.store.layout import Layout, cells, control_cells, shift_cells

KINDS = {
    "teacher": "teacher",
    "substitute": "pool",
    "shift": "pool",
    "dictionary": "dictionary",
    "distill": "student",
    "evaluate": "evaluation",
}
"""The kind of artifact each stage's file makes."""

_PARENT_KINDS = {"base": "pool", "adopted": "teacher"}


def kind_of_role(role: str) -> str:
    """Return the kind of the artifact that is a parent in this role, as cards name roles."""
    return _PARENT_KINDS.get(role, role)


@dataclass(frozen=True)
class PlannedStage:
    """One stage of ``dvc.yaml`` at one point of the grid.

    Attributes:
        name: Its name in DVC.
        kind: What it makes.
        cell: Values of its axes.
        params: The blocks it depends on, by dotted key.
        artifact: Where its result lies.
        parents: Where what it is made from lies, by role.
    """

    name: str
    kind: str
    cell: dict[str, str | int]
    params: dict[str, Any]
    artifact: Path
    parents: dict[str, Path]

    def is_in_place(self) -> bool:
        """Tell whether the artifact is there and was made with these params, of these parents.

        Parents are compared by their cards, as far as they are in place themselves.
        """
        card = card_at(self.artifact, self.kind)
        if card is None or card["params"] != self.params:
            return False
        return not self.has_other_parents(card.get("parents", {}))

    def has_other_parents(self, contents: Mapping[str, str]) -> bool:
        """Tell whether a parent in place is another than ``contents`` has, a hash by role."""
        for role in self.parents.keys() & contents.keys():
            card = card_at(self.parents[role], kind_of_role(role))
            if card is not None and card["content"] != contents[role]:
                return True
        return False


def card_at(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the card of an artifact; None: there is none that can be read."""
    try:
        return read_card(path, kind=kind)
    except (KdciError, OSError):
        return None


def planned_stages(params: Params, layout: Layout) -> list[PlannedStage]:
    """Return what `dvc repro` makes of the current params, parents first, the report left out."""
    planned = []
    if params.grid.others:
        planned += list(_planned(params.of_other(), layout.other, of_other=True))
    return [*planned, *_planned(params, layout, of_other=False)]


def _planned(params: Params, layout: Layout, *, of_other: bool) -> Iterator[PlannedStage]:
    # Imported here: the stages' modules load torch.
    from stages import dictionary, distill, evaluate, shift, substitute, teacher
    from stages.session import StageIdentity

    for module in (teacher, substitute, shift, dictionary, distill, evaluate):
        for stage in module.STAGES:
            if of_other and not stage.for_other:
                continue
            name = f"{stage.name}_other" if of_other else stage.name
            for cell in _points(params.grid, stage.name, stage.axes):
                blocks = params.blocks(*stage.keys(cell, params))
                identity = StageIdentity(name, cell, blocks, stage.artifact(layout, cell))
                kind = KINDS[stage.name.partition("_")[0]]
                parents = _parents(params, layout, stage.name, cell)
                yield PlannedStage(identity.name, kind, cell, blocks, identity.artifact, parents)


def _parents(
    params: Params, layout: Layout, stage: str, cell: Mapping[str, str | int]
) -> dict[str, Path]:
    """Return where the artifacts lie that a checkpoint of a stage can depend on."""
    teacher = str(cell["teacher"])
    if stage == "teacher":
        finished = params.teacher.artifact_of(teacher, params.data.name)
        return {} if finished is None else {"adopted": layout.root / finished}
    method = str(cell["method"])
    places = {"teacher": layout.teacher(teacher)}
    if "pool_seed" not in cell:
        return places
    pool_seed = int(cell["pool_seed"])
    if stage == "shift":
        return {**places, "base": layout.pool(teacher, params.base_of(method), pool_seed)}
    if stage != "substitute":
        places["pool"] = layout.pool(teacher, method, pool_seed)
    adopted = params.dictionary.artifact
    if stage == "dictionary" and adopted is not None and not layout.branch:
        places["dictionary"] = layout.root / adopted
    arm = ARMS.get(stage.removeprefix("distill_"))
    if arm is not None and arm.dictionary == "own":
        places["dictionary"] = layout.dictionary(teacher, method, pool_seed)
    elif arm is not None and arm.dictionary == "other":
        other = params.grid.other_of(teacher, str(cell["student"]))
        places["dictionary"] = layout.other.dictionary(other, method, pool_seed)
    return places


def _points(grid: Grid, stage: str, axes: Sequence[str]) -> list[dict[str, str | int]]:
    """Return the values of a stage's axes: those of the cells that it works for, each once."""
    of_methods, of_controls = list(cells(grid)), list(control_cells(grid))
    of_shifts = list(shift_cells(grid))
    wanted = {
        "substitute": [*of_methods, *of_controls],
        "shift": of_shifts,
        "dictionary": [*of_methods, *of_shifts],
    }.get(stage, [*of_methods, *of_controls, *of_shifts])
    if stage.startswith("distill_"):
        arm = stage.removeprefix("distill_")
        wanted = [cell for cell in wanted if cell.variant == arm]
    points = [tuple(cell.asdict()[axis] for axis in axes) for cell in wanted]
    return [dict(zip(axes, point, strict=True)) for point in dict.fromkeys(points)]
