"""What a student comes from and how it scored, found beside it by the hashes on the cards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.errors import KdciError
from kdci.store.artifacts import Artifact, open_artifact, read_card
from kdci.store.layout import Cell, Layout

Card = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """How a student was scored by the evaluation of its cell.

    Attributes:
        card: Of the evaluation.
        row: The student's row.
        replicates: The rows of all students of its arm, its own among them.
        num_images: Test images; None: there was no test data, and accuracies are null.
    """

    card: Card
    row: dict[str, Any]
    replicates: list[dict[str, Any]]
    num_images: int | None


@dataclass(frozen=True)
class Lineage:
    """A student and what was found of where it comes from.

    Attributes:
        student: Its artifact.
        cell: Which one it is.
        teacher: The teacher's artifact; None, as with the others: it is not at hand, or is
            another one by now.
        pool: Card of the pool.
        dictionary: Card of the dictionary; None also where there is none.
        scores: How it was scored.
    """

    student: Artifact
    cell: Cell
    teacher: Artifact | None
    pool: Card | None
    dictionary: Card | None
    scores: Scores | None

    def parent(self, role: str) -> str | None:
        """Return the content hash of what the student was made from; None: of no such thing."""
        found: str | None = self.student.card.get("parents", {}).get(role)
        return found


def lineage_of(student: Artifact) -> Lineage:
    """Look for a student's relatives where the layout has them."""
    cell = Cell.of(student.facts)
    layout = _layout_of(student.path, cell)
    teacher = pool = dictionary = scores = None
    if layout is not None:
        parents = student.card.get("parents", {})
        teacher = _teacher(layout.teacher(cell.teacher), parents.get("teacher"))
        place = layout.pool(cell.teacher, cell.method, cell.pool_seed)
        pool = _card(place, "pool", parents.get("pool"))
        for place in _dictionaries(layout, cell):
            dictionary = dictionary or _card(place, "dictionary", parents.get("dictionary"))
        scores = _scores(layout, cell, student)
    return Lineage(student, cell, teacher, pool, dictionary, scores)


def _layout_of(path: Path, cell: Cell) -> Layout | None:
    """Return the layout that has the student at this place; None: it was taken elsewhere."""
    depth = len(Path(cell.name).parts) + 1  # of `students`
    folders = path.absolute().parents
    if len(folders) <= depth + 1:
        return None
    artifacts = folders[depth - 1]
    layout = Layout(artifacts.parents[1], artifacts.name)
    return layout if layout.student(cell) == path.absolute() else None


def _dictionaries(layout: Layout, cell: Cell) -> Iterator[Path]:
    """Yield the teacher's own dictionary, then those of other models."""
    own = layout.dictionary(cell.teacher, cell.method, cell.pool_seed)
    yield own
    replicate = own.relative_to(own.parents[1])
    yield from sorted(layout.other.artifacts.glob(f"dictionaries/*/{replicate}"))


def _card(place: Path, kind: str, content: str | None) -> Card | None:
    if content is None:
        return None
    try:
        card = read_card(place, kind=kind)
    except (KdciError, OSError):
        return None
    return card if card["content"] == content else None


def _teacher(place: Path, content: str | None) -> Artifact | None:
    return open_artifact(place, kind="teacher") if _card(place, "teacher", content) else None


def _scores(layout: Layout, cell: Cell, student: Artifact) -> Scores | None:
    """Return the evaluation's scores if they are this very student's."""
    place = layout.evaluation(cell.teacher, cell.student, cell.method)
    try:
        artifact = open_artifact(place, kind="evaluation")
    except (KdciError, OSError):
        return None
    if artifact.card["parents"].get(cell.name) != student.content:
        return None
    of_arm = [row for row in artifact.json("cells.json") if row["variant"] == cell.variant]
    own = next(row for row in of_arm if Cell.of(row) == cell)
    return Scores(artifact.card, own, of_arm, _num_images(artifact))


def _num_images(artifact: Artifact) -> int | None:
    """Return the number of test images, from the head of the file of predictions."""
    if "predictions.safetensors" not in artifact.card["files"]:
        return None
    with artifact.file("predictions.safetensors").open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return int(head["expected"]["shape"][0])
