"""The disk space that stages take: what stays, and what is there while a stage runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdci.graph.node import Node
from kdci.training.schedules import snapshot_steps
from pipelines.checking.estimating.counting import image_bytes
from pipelines.checking.estimating.measured import Measurements
from pipelines.checking.estimating.stages import Side

FLOAT_BYTES = 4


@dataclass
class DiskNeed:
    """What artifacts of one kind take.

    Attributes:
        kind: Of the artifacts.
        number: How many.
        num_bytes: What they take together.
        largest_work: What the largest stage takes beside them while it runs.
        unknown: Number of those whose networks were not built.
    """

    kind: str
    number: int = 0
    num_bytes: int = 0
    largest_work: int = 0
    unknown: int = 0


def disk_needs(stages: Iterable[tuple[Node, Side]], measured: Measurements) -> list[DiskNeed]:
    """Return what the artifacts of stages take, by kind; dictionaries and the rest take little."""
    needs: dict[str, DiskNeed] = {}
    for stage, side in stages:
        if stage.kind not in ("teacher", "pool", "student"):
            continue
        need = needs.setdefault(stage.kind, DiskNeed(stage.kind))
        need.number += 1
        kept, work = _sizes(stage, side, measured)
        if kept is None:
            need.unknown += 1
        need.num_bytes += kept or 0
        need.largest_work = max(need.largest_work, work)
    return list(needs.values())


def _sizes(stage: Node, side: Side, measured: Measurements) -> tuple[int | None, int]:
    """Return the bytes of a stage's artifact, and of what lies beside it while it is made."""
    teacher, spec = str(stage.point["teacher"]), side.params.data.spec
    if stage.kind == "teacher":
        return _state(side, teacher, measured), 0
    method = str(stage.point["method"])
    kept, held = side.kept(method, teacher)
    if stage.kind == "pool":
        images = (kept + held) * image_bytes(spec)
        # The images lie in the work folder until the pool is stored.
        return images + kept * spec.num_classes * FLOAT_BYTES, images
    student = str(stage.point["student"])
    recipe = side.params.recipe(method)
    grown = 0
    if method not in side.params.grid.shifts:
        block = side.params.method(method, teacher=teacher, student=student)
        grown = block.num_refreshes(recipe) * block.num_refresh_images * image_bytes(spec)
    marks = snapshot_steps(
        recipe.num_epochs, recipe.steps_per_epoch, side.params.distill.num_snapshots
    )
    size = _state(side, student, measured)
    return (None if size is None else size * (1 + len(marks))), grown


def _state(side: Side, backbone: str, measured: Measurements) -> int | None:
    found = measured.backbone(side.name, backbone)
    return None if found is None else int(found["state"])
