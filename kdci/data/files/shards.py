"""Parquet files of a split, as Hugging Face names them: ``train-00000-of-00002.parquet``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdci.errors import UserError


def find_shards(
    path: Path, *, folders: Sequence[str], names: Sequence[str], tree: str
) -> list[Path]:
    """Return the Parquet files of a split, in order.

    Args:
        path: Where to look.
        folders: Folders below it, the likeliest first; one folder holds the split.
        names: What the split may be called, the likeliest first.
        tree: What is expected, for the message.

    Returns:
        The shards of the first name that has any, or nothing.

    Raises:
        UserError: If some of its shards are missing or doubled.
    """
    for name in names:
        for folder in folders:
            files = sorted((path / folder).glob(f"{name}-*.parquet"))
            files += sorted((path / folder).glob(f"{name}.parquet"))
            if files:
                require_all_shards(files, tree)
                return files
    return []


def require_all_shards(files: Sequence[Path], fix: str) -> None:
    """Refuse files of which some shards ``-00001-of-00003`` are missing or doubled.

    Args:
        files: Parquet files, of several folders and names maybe.
        fix: What is told to do.

    Raises:
        UserError: Names a shard of those that are not complete.
    """
    found: dict[tuple[Path, str, int], list[Path]] = {}
    for file in files:
        numbered = re.search(r"(.*)-\d+-of-(\d{1,9})", file.stem)
        if numbered:
            key = (file.parent, numbered[1], int(numbered[2]))
            found.setdefault(key, []).append(file)
    for (_, _, number), shards in found.items():
        if number != len(shards):
            what = f"one of {number} shards, {len(shards)} found"
            raise UserError(str(shards[0]), what, fix)
