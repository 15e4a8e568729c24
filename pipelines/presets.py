"""Presets: whole params files that ship with the code, as a project's starting point.

A preset that needs data says so with paths below ``data``. `kdci preset NAME --data PATH` puts
PATH in the place of that folder and leaves every comment where it was.
"""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from kdci.artifacts import replace_file
from kdci.errors import KdciError, UserError
from kdci.params_file import read_yaml

FOLDER = Path(__file__).with_name("presets")
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
    text = preset_text(name, data=None if data is None else _seen_from(file.parent, data))
    if not force and os.path.lexists(file) and not _is_shipped(file):
        raise UserError(str(file), "has edits that would be lost", "give --force to replace it")
    replace_file(file, text.encode())


def _seen_from(root: Path, data: str) -> str:
    """Return ``data`` as the stages will see it: they run in the project folder."""
    if Path(data).is_absolute() or root.samefile(Path.cwd()):
        return data
    return os.path.relpath(data, root)


def _is_shipped(file: Path) -> bool:
    """Tell whether a params file is some preset as `kdci preset` writes it."""
    try:
        text = file.read_text(encoding="utf-8")
        block = read_yaml(file).get("data")
    except (OSError, UnicodeDecodeError, KdciError):
        return False
    data = block.get("path") if isinstance(block, dict) else None
    return any(text in _renderings(name, data) for name in preset_names())


def _renderings(name: str, data: object) -> Iterator[str]:
    yield preset_text(name)
    if isinstance(data, str) and _data_paths(_yaml().load(preset_text(name))):
        yield preset_text(name, data=data)


def _with_data(name: str, text: str, data: str) -> str:
    yaml = _yaml()
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
    methods = [block for block in tree["methods"].values() if block]
    blocks = [tree["data"], *(block.get("open_world") for block in methods)]
    return [
        block
        for block in blocks
        if block and block.get("path") and PurePosixPath(block["path"]).is_relative_to(DATA)
    ]


def _yaml() -> YAML:
    yaml = YAML()  # the round-trip kind keeps comments, quotes and number formats
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 2**20  # never wrap a line
    return yaml
