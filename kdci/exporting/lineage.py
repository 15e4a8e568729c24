"""What a student comes from and how it scored, found beside it by the hashes on the cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.errors import KdciError
from kdci.graph.standing import card_at
from kdci.store.artifacts import Artifact, open_artifact
from kdci.store.layout import Cell, Layout

Card = dict[str, Any]


@dataclass(frozen=True)
class Lineage:
    """A student and what was found of where it comes from.

    Attributes:
        student: Its artifact.
        cell: Which one it is.
        cards: By role, of the student and what belongs to it; not of what is not at hand, or is
            another one by now.
        teacher: The teacher's artifact, if it is at hand.
        rows: The evaluation's rows of all students of its arm, its own among them; None: they are
            not at hand.
        num_images: Test images; None: there was no test data, and accuracies are null.
    """

    student: Artifact
    cell: Cell
    cards: dict[str, Card]
    teacher: Artifact | None = None
    rows: list[dict[str, Any]] | None = None
    num_images: int | None = None

    @property
    def row(self) -> dict[str, Any] | None:
        """The student's own row."""
        return next((row for row in self.rows or () if Cell.of(row) == self.cell), None)

    def parent(self, role: str) -> str | None:
        """Return the content hash of what the student was made from; None: of no such thing."""
        found: str | None = self.student.card.get("parents", {}).get(role)
        return found


def lineage_of(student: Artifact) -> Lineage:
    """Look for a student's relatives where the layout has them."""
    cell, cards = Cell.of(student.facts), {"student": student.card}
    layout = _layout_of(student.path, cell)
    if layout is None:
        return Lineage(student, cell, cards)
    own = layout.dictionary(cell.teacher, cell.method, cell.pool_seed)
    replicate = own.relative_to(own.parents[1])
    others = sorted(layout.other.artifacts.glob(f"dictionaries/*/{replicate}"))
    places = {
        "teacher": [layout.teacher(cell.teacher)],
        "pool": [layout.pool(cell.teacher, cell.method, cell.pool_seed)],
        "dictionary": [own, *others],
    }
    for role, folders in places.items():
        for folder in folders:
            card = card_at(folder, role)
            if card is not None and card["content"] == student.card.get("parents", {}).get(role):
                cards.setdefault(role, card)
    teacher = None
    if "teacher" in cards:
        teacher = open_artifact(layout.teacher(cell.teacher), kind="teacher")
    evaluation = _evaluation(layout, cell, student)
    if evaluation is None:
        return Lineage(student, cell, cards, teacher)
    of_arm = [row for row in evaluation.json("cells.json") if row["variant"] == cell.variant]
    cards["evaluation"] = evaluation.card
    return Lineage(student, cell, cards, teacher, of_arm, _num_images(evaluation))


def _layout_of(path: Path, cell: Cell) -> Layout | None:
    """Return the layout that has the student at this place; None: it was taken elsewhere."""
    depth = len(Path(cell.name).parts) + 1  # of `students`
    folders = path.absolute().parents
    if len(folders) <= depth + 1:
        return None
    artifacts = folders[depth - 1]
    layout = Layout(artifacts.parents[1], artifacts.name)
    return layout if layout.student(cell) == path.absolute() else None


def _evaluation(layout: Layout, cell: Cell, student: Artifact) -> Artifact | None:
    """Return the evaluation of a cell if it scored this very student."""
    try:
        place = layout.evaluation(cell.teacher, cell.student, cell.method)
        artifact = open_artifact(place, kind="evaluation")
    except (KdciError, OSError):
        return None
    return artifact if artifact.card["parents"].get(cell.name) == student.content else None


def _num_images(artifact: Artifact) -> int | None:
    """Return the number of test images, from the head of the file of predictions."""
    from safetensors import safe_open

    if "predictions.safetensors" not in artifact.card["files"]:
        return None
    with safe_open(artifact.file("predictions.safetensors"), framework="numpy") as file:
        return int(file.get_slice("expected").get_shape()[0])
