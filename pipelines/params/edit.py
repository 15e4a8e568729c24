"""params.yaml as commands write it: a preset, or values put in place; comments and layout stay."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.tokens import CommentToken

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.config.params import Data, Params
from kdci.config.params_file import load_params
from kdci.errors import CombinedUserError, UserError
from kdci.store.artifacts import read_card, replace_file, storage_errors
from pipelines.params.presets import edited, is_ours, note_written, preset_text, seen_from

FACTS = (
    *("num_classes", "image_size", "channels", "mean", "std"),
    *("crop_padding", "flip", "class_names"),
)
"""What `data.facts` holds of a dataset of the user's."""


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """Return a params file with the values at dotted keys replaced.

    Raises:
        UserError: A key has no block in the file to stand in.
    """

    def put(tree: Any) -> None:
        for key, value in values.items():
            *blocks, last = key.split(".")
            node = tree
            for block in blocks:
                node = node.get(block) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise UserError(key, "has no place in params.yaml", "add its block first")
            if isinstance(value, list | tuple):
                _set_list(node, last, value)
            else:
                node[last] = value

    return edited(text, put)


def _set_list(node: Any, key: str, values: Sequence[Any]) -> None:
    """Put a list in, an item a line where the one there is, else in one line as in presets."""
    old, new = node.get(key), CommentedSeq(values)
    new.fa.set_flow_style()
    if isinstance(old, CommentedSeq) and old and not old.fa.flow_style():
        below = _comment_below(old)
        if new:
            new.fa.set_block_style()
            new.ca.comment = old.ca.comment
            if below is not None:
                new.ca.items[len(new) - 1] = [below, None, None, None]
        else:
            # A comment between the key and its value in one line would cut the line short.
            node.ca.items[key] = [None, None, below, None]
    node[key] = new


def _comment_below(values: CommentedSeq) -> CommentToken | None:
    """Return what follows the lines of a list; what stands beside its items goes with them."""
    token = (values.ca.items.get(len(values) - 1) or [None])[0]
    if token is None:
        return None
    _, newline, below = token.value.partition("\n")
    return CommentToken(newline + below, token.start_mark, None) if below else None


def checked(text: str) -> Params:
    """Return the params of a file's text.

    Raises:
        UserError: They are not valid.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            return load_params(file)
        except UserError as error:
            # Nobody knows the temporary file: what is wrong is wrong in theirs.
            parts = error.problems if isinstance(error, CombinedUserError) else [error]
            raise CombinedUserError([_of_params_yaml(part, file) for part in parts]) from None


def _of_params_yaml(error: UserError, file: Path) -> UserError:
    subject = error.subject.replace(str(file), file.name)
    return UserError(subject, error.what.replace(str(file), file.name), error.fix)


# -- `kdci preset` ------------------------------------------------------------------------------


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
    _write(file, text, ours=bool(values))  # a preset as it ships is known by its text


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
    """Return what a finished teacher says of the params that go with it."""
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


# -- `kdci run --preset --seeds` -------------------------------------------------------------------


def prepare(root: Path, *, preset: str | None, seeds: list[int] | None) -> Callable[[], None]:
    """Make params.yaml what a run was asked for; it is left alone where nothing was.

    A file that a human edited is not replaced by a preset. A preset that is there already keeps
    what `kdci preset` put into it: data folder, teacher, student, budget.

    Args:
        root: The project folder.
        preset: Preset to write; None: keep the file.
        seeds: Student seeds to set in ``grid.seeds``; None: keep them.

    Returns:
        Puts the file back as it was: for a run that comes to nothing.

    Raises:
        UserError: No such preset, seeds that are not valid, or edits would be lost.
    """
    file = root / "params.yaml"
    if preset is None and seeds is None:
        return lambda: None
    current = file.read_text(encoding="utf-8") if file.is_file() else None
    text = current if preset is None else _preset(preset, file)
    if text is None:
        raise UserError(str(file), "is not there", "give a preset")
    if seeds is not None:
        text = with_values(text, {"grid.seeds": seeds})
    checked(text)
    if text == current:
        return lambda: None
    ours = current is None or is_ours(file)
    if preset is not None and not ours:
        what = "has edits that the preset would replace"
        raise UserError(str(file), what, f"give `kdci preset {preset} --force` first")
    _write(file, text, ours=ours)  # seeds set in a file that a human edited do not make it ours
    return lambda: _write(file, current, ours=ours)


def _preset(name: str, file: Path) -> str:
    """Return a preset's text: the file's own, but for its seeds, if that is the same preset."""
    text = preset_text(name)
    try:
        same = file.is_file() and load_params(file, methods=False).preset == name and is_ours(file)
    except UserError:
        same = False
    if not same:
        return text
    seeds = list(checked(text).grid.seeds)
    return with_values(file.read_text(encoding="utf-8"), {"grid.seeds": seeds})


def _write(file: Path, text: str | None, *, ours: bool) -> None:
    """Write params.yaml, and note that no human did; None: there is to be none."""
    if text is None:
        file.unlink(missing_ok=True)
        return
    replace_file(file, text.encode())
    if ours:
        note_written(file, text)
