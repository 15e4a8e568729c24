"""Presets: whole params files that ship with the code, as a project's starting point.

A preset that needs data says so with paths below ``data``. `kdci preset NAME --data PATH` puts
PATH in the place of that folder and leaves every comment where it was.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from kdci.config.params_file import read_yaml
from kdci.errors import KdciError, UserError
from kdci.store.artifacts import replace_file
from kdci.store.layout import Layout

FOLDER = Path(__file__).parents[1] / "presets"
DATA = "data"
"""What a preset's paths begin with where the user's data folder belongs."""

Tree = MutableMapping[str, Any]


class _Representer(RoundTripRepresenter):
    """Writes null as it is read; ruamel would leave the value out."""


_Representer.add_representer(
    type(None), lambda own, _: own.represent_scalar("tag:yaml.org,2002:null", "null")
)


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(file.stem for file in FOLDER.rglob("*.yaml"))


def preset_file(name: str) -> Path:
    """Return the file of a preset there is."""
    return next(FOLDER.rglob(f"{name}.yaml"))


def preset_text(name: str, *, data: str | None = None) -> str:
    """Return a preset's params file.

    Args:
        name: One of ``preset_names()``.
        data: Folder to read the data from; None: as the preset says.

    Raises:
        UserError: There is no such preset, or it takes no data.
    """
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UserError(name, "unknown preset", f"{hint}one of {', '.join(names)}")
    text = preset_file(name).read_text(encoding="utf-8")
    return text if data is None else _with_data(name, text, data)


def seen_from(root: Path, data: str) -> str:
    """Return a path as the stages will see it: they run in the project folder ``root``."""
    if Path(data).is_absolute() or root.samefile(Path.cwd()):
        return data
    return os.path.relpath(data, root)


def is_ours(file: Path) -> bool:
    """Tell whether a params file holds no edit of a human: `kdci preset` or a run wrote it."""
    text = _text_of(file)
    if text is None:
        return False
    if _text_of(_record(file)) == _digest(text):
        return True  # see ``note_written``
    try:
        data = (read_yaml(file).get("data") or {}).get("path")
    except (KdciError, AttributeError):  # no preset ships like that
        return False
    return any(text in _renderings(name, data) for name in preset_names())


def _text_of(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def note_written(file: Path, text: str) -> None:
    """Remember that a run wrote ``text``: no edit of a human is in it.

    Raises:
        StorageError: The note can not be written.
    """
    replace_file(_record(file), _digest(text).encode())


def _record(file: Path) -> Path:
    return Layout(file.parent, "").work / "params.sha256"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _renderings(name: str, data: object) -> Iterator[str]:
    """Yield a preset as `kdci preset` writes it, without a data folder and with this one."""
    yield preset_text(name)
    if isinstance(data, str) and _data_blocks(read_yaml(preset_file(name))):
        yield preset_text(name, data=data)


def _with_data(name: str, text: str, data: str) -> str:
    def put(tree: Tree) -> None:
        blocks = _data_blocks(tree)
        if not blocks:
            raise UserError("--data", f"preset {name} reads no data folder", "leave it out")
        for block in blocks:
            below = PurePosixPath(block["path"]).relative_to(DATA)
            block["path"] = str(PurePosixPath(data) / below)

    return edited(text, put)


def _data_blocks(tree: Tree) -> list[Tree]:
    """Return the blocks whose path lies in the data folder."""
    blocks = [tree["data"], (tree.get("other") or {}).get("data")]
    for block in (tree["methods"] or {}).values():
        open_world = (block or {}).get("open_world") or {}
        blocks += [open_world, *(open_world.get("sources") or ())]
    return [
        block
        for block in blocks
        if block and block.get("path") and PurePosixPath(block["path"]).is_relative_to(DATA)
    ]


def edited(text: str, edit: Callable[[Tree], None]) -> str:
    """Return a YAML text after an edit of its tree; comments, quotes and number formats stay."""
    yaml = YAML()  # the round-trip kind
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 2**20  # never wrap a line
    tree, out = yaml.load(text), io.StringIO()
    edit(tree)
    yaml.dump(tree, out)
    return out.getvalue()
