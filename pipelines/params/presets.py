"""Presets: whole params files that ship with the code, as a project's starting point.

A preset that needs data says so with paths below ``data``. `kdci preset NAME --data PATH` puts
PATH in the place of that folder and leaves every comment where it was.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
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


def _represent_null(representer: RoundTripRepresenter, value: None) -> ScalarNode:
    node: ScalarNode = representer.represent_scalar("tag:yaml.org,2002:null", "null")
    return node


_Representer.add_representer(type(None), _represent_null)


def preset_names() -> list[str]:
    """Return the names of the presets, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


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
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return text if data is None else _with_data(name, text, data)


def write_preset(name: str, file: Path, *, data: str | None = None, force: bool = False) -> None:
    """Write a preset's params file.

    Args:
        name: One of ``preset_names()``.
        file: The params file; one that was edited stays unless ``force`` is given.
        data: Folder to read the data from, as seen from the working directory.
        force: Replace an edited file too.

    Raises:
        UserError: There is no such preset, it takes no data, or the file was edited.
        StorageError: The file can not be written.
    """
    text = preset_text(name, data=None if data is None else seen_from(file.parent, data))
    if not force and os.path.lexists(file) and not is_ours(file):
        raise UserError(str(file), "has edits that would be lost", "give --force to replace it")
    replace_file(file, text.encode())


def seen_from(root: Path, data: str) -> str:
    """Return a path as the stages will see it: they run in the project folder ``root``."""
    if Path(data).is_absolute() or root.samefile(Path.cwd()):
        return data
    return os.path.relpath(data, root)


def is_ours(file: Path) -> bool:
    """Tell whether a params file holds no edit of a human: a preset or a run wrote it."""
    return is_shipped(file) or written_by_run(file)


def is_shipped(file: Path) -> bool:
    """Tell whether a params file is some preset as `kdci preset` writes it."""
    return any(_is_rendering(file, name) for name in preset_names())


def written_by_run(file: Path) -> bool:
    """Tell whether a params file is just as a run left it; see ``note_written``."""
    try:
        text = file.read_text(encoding="utf-8")
        return _record(file).read_text(encoding="utf-8") == _digest(text)
    except (OSError, UnicodeDecodeError):
        return False


def note_written(file: Path, text: str) -> None:
    """Remember that a run wrote ``text``: no edit of a human is in it.

    Raises:
        StorageError: The note can not be written.
    """
    replace_file(_record(file), _digest(text).encode())


def data_paths(file: Path) -> dict[str, str]:
    """Return where a params file reads data from, by dotted key; an unreadable one: nothing."""
    try:
        blocks = _data_blocks(read_yaml(file))
        found = {f"{key}.path": block.get("path") for key, block in blocks.items()}
    except (OSError, UnicodeDecodeError, KdciError, KeyError, AttributeError, TypeError):
        return {}
    return {key: path for key, path in found.items() if isinstance(path, str)}


def _record(file: Path) -> Path:
    return Layout(file.parent, "").work / "params.sha256"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_rendering(file: Path, name: str) -> bool:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text in _renderings(name, data_paths(file).get("data.path"))


def _renderings(name: str, data: object) -> Iterator[str]:
    yield preset_text(name)
    if isinstance(data, str) and _data_paths(round_trip_yaml().load(preset_text(name))):
        yield preset_text(name, data=data)


def _with_data(name: str, text: str, data: str) -> str:
    yaml = round_trip_yaml()
    tree = yaml.load(text)
    paths = _data_paths(tree)
    if not paths:
        raise UserError("--data", f"preset {name} reads no data folder", "leave it out")
    for block in paths:
        below = PurePosixPath(block["path"]).relative_to(DATA)
        block["path"] = str(PurePosixPath(data) / below)
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def _data_paths(tree: Tree) -> list[Tree]:
    """Return the blocks whose path lies in the data folder."""
    return [
        block
        for block in _data_blocks(tree).values()
        if block.get("path") and PurePosixPath(block["path"]).is_relative_to(DATA)
    ]


def _data_blocks(tree: Tree) -> dict[str, Tree]:
    """Return the blocks that have a path of data, by dotted key; those that are null left out."""
    blocks = {"data": tree["data"], "other.data": (tree.get("other") or {}).get("data")}
    for name, block in (tree["methods"] or {}).items():
        open_world = (block or {}).get("open_world") or {}
        blocks[f"methods.{name}.open_world"] = open_world
        for place, part in enumerate(open_world.get("sources") or []):
            blocks[f"methods.{name}.open_world.sources.{place}"] = part
    return {key: block for key, block in blocks.items() if block}


def round_trip_yaml() -> YAML:
    """Return the reader and writer that keeps comments, quotes and number formats."""
    yaml = YAML()  # the round-trip kind
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 2**20  # never wrap a line
    return yaml
