"""Edits of params.yaml by commands: values replaced in place, comments and layout kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.tokens import CommentToken

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import CombinedUserError, UserError
from kdci.store.artifacts import replace_file
from pipelines.params.presets import edited, is_ours, note_written, preset_text


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
    replace_file(file, text.encode())
    if ours:  # seeds set in a file that a human edited do not make it ours
        note_written(file, text)
    return lambda: _put_back(file, current, ours=ours)


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


def _put_back(file: Path, text: str | None, *, ours: bool) -> None:
    if text is None:
        file.unlink(missing_ok=True)
        return
    replace_file(file, text.encode())
    if ours:
        note_written(file, text)
