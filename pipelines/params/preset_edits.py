"""`kdci preset`: a preset's params file, with teacher, student and budget of the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.config.params import Data, Params
from kdci.errors import UserError
from kdci.store.artifacts import read_card, replace_file, storage_errors
from pipelines.params.edit import checked, with_values
from pipelines.params.presets import is_ours, note_written, preset_text, seen_from

FACTS = (
    *("num_classes", "image_size", "channels", "mean", "std"),
    *("crop_padding", "flip", "class_names"),
)
"""What `data.facts` holds of a dataset of the user's."""


def write_preset(
    name: str,
    file: Path,
    *,
    data: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    budget: float | None = None,
    force: bool = False,
) -> None:
    """Write a preset's params file, with values put in.

    Args:
        name: One of ``preset_names()``.
        file: The params file; one that a human edited stays unless ``force`` is given.
        data: Folder to read the data from, as seen from the working directory.
        teacher: Folder of a finished teacher, as seen from there: adopted, and its backbone and
            dataset put into the grid and the data block.
        student: The student's backbone.
        budget: Factor on the steps of pools and students.
        force: Replace an edited file too.

    Raises:
        UserError: No such preset, a value that does not fit, or edits that would be lost.
        IntegrityError: The teacher's card is damaged.
        StorageError: The file can not be written.
    """
    text = preset_text(name, data=None if data is None else seen_from(file.parent, data))
    values: dict[str, Any] = {} if budget is None else {"budget": budget}
    if student is not None:
        values["grid.students"] = [student]
    if student is not None or teacher is not None:
        params = checked(text)
        _require_one_pair(params, teacher, student)
        if teacher is not None:
            values |= _of_teacher(file.parent, teacher, params.data, data)
    if values:
        text = with_values(text, values)
        checked(text)
    if not force and os.path.lexists(file) and not is_ours(file):
        raise UserError(str(file), "has edits that would be lost", "give --force to replace it")
    replace_file(file, text.encode())
    if values:  # a preset as it ships is known by its text
        note_written(file, text)


def _require_one_pair(params: Params, teacher: str | None, student: str | None) -> None:
    """Refuse options that speak of one teacher or student where the preset has several."""
    grid = params.grid
    if teacher and grid.others:
        what = f"preset {params.preset} has another model beside the teacher"
        raise UserError("--teacher", what, _BY_NAMES)
    if (student or teacher) and (grid.pairs or len(grid.teachers) > 1):
        what = f"preset {params.preset} lists teachers and students of its own"
        if student:
            raise UserError("--student", what, "edit grid in params.yaml")
        raise UserError("--teacher", what, _BY_NAMES)


_BY_NAMES = (
    "set teacher.artifact in params.yaml, with {teacher} and {dataset} in the place of their names"
)


def _of_teacher(root: Path, teacher: str, of_preset: Data, data: str | None) -> dict[str, Any]:
    """Return what a finished teacher says of the params that go with it.

    Args:
        root: The project folder.
        teacher: The teacher's folder.
        of_preset: The data block that is there.
        data: What was given as the data's folder.
    """
    place = Path(teacher)
    with storage_errors(place):
        card = read_card(place, kind="teacher")
    facts = card["facts"]
    found = {key: facts[key] for key in FACTS if facts.get(key) not in (None, [])}
    custom = facts["dataset"] == CUSTOM
    values = {
        "grid.teachers": [facts["backbone"]],
        "teacher.artifact": seen_from(root, teacher),
        "teacher.content": card["content"],
        "data.name": facts["dataset"],
        "data.facts": found if custom else None,
        "dictionary.num_prototypes": facts["num_classes"],
    }
    bundled = not custom and DATASETS[facts["dataset"]].bundled
    same = facts["dataset"] == of_preset.name
    if data is None and not same:
        values["data.path"] = None  # the folder is of other images
    if not bundled and data is None and (not same or of_preset.path is None):
        values["data.test"] = None
    return values
