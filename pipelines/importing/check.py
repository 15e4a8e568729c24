"""The look of `kdci check` at finished teachers that the params adopt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.errors import IntegrityError, KdciError, UserError
from kdci.graph.standing import card_at
from kdci.intake.adoption import adopting, require_adoptable, require_content
from kdci.store.artifacts import Artifact, open_artifact, storage_errors
from kdci.store.layout import Layout


def check_teacher_artifact(params: Params, layout: Layout) -> Iterator[KdciError]:
    """Yield what would stop the teacher stage from adopting `teacher.artifact`.

    Files are re-hashed and facts compared for each teacher of the grid. DFND is told apart:
    it has to know the teacher's accuracy, which an imported teacher may not state.
    """
    for teacher in params.grid.teachers:
        place = params.teacher.artifact_of(teacher, params.data.name)
        if place is None:
            return
        path = layout.root / place
        try:
            with storage_errors(path), adopting(place):
                artifact = open_artifact(path, kind="teacher")
            require_content(artifact.content, place, wanted=params.teacher.content)
            require_adoptable(artifact.facts, place, backbone=teacher, spec=params.data.spec)
        except KdciError as error:
            yield error
        else:
            yield from _unknown_accuracy(params, teacher, artifact.facts, place)
            yield from _replaced(layout.teacher(teacher), teacher, artifact, place)


def _replaced(adopted: Path, teacher: str, artifact: Artifact, place: str) -> Iterator[KdciError]:
    """Tell of a teacher that was adopted from this folder when another lay in it.

    The folder is no dependency of DVC's: a teacher that is trained has none.
    """
    card = card_at(adopted, "teacher")  # None: there is none yet, or it is told elsewhere
    origin = {} if card is None else card["facts"].get("adopted", {})
    if origin.get("path") == place and origin["content"] != artifact.content:
        what = f"was adopted from {place} when another teacher lay there"
        fix = f"`dvc repro --force --single-item teacher@{teacher}`, or put that one back"
        yield IntegrityError(str(adopted), what, fix)


def _unknown_accuracy(
    params: Params, teacher: str, facts: dict[str, Any], place: str
) -> Iterator[KdciError]:
    known = facts["accuracy"] is not None or facts["train_accuracy"] is not None
    if known or params.data.test is not None or "dfnd" not in params.grid.methods:
        return
    block = params.method("dfnd", teacher=teacher)
    if getattr(block, "teacher_accuracy", None) == "auto":
        what = f"auto needs the teacher's accuracy, which the card of {place} does not state"
        fix = "give it as a fraction, or import the teacher with --data"
        yield UserError("methods.dfnd.teacher_accuracy", what, fix)
