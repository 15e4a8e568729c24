"""Find image and Parquet files below a folder, always in the same order."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kdci.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
OUTSIDE = "symlink out of the folder"
UNREADABLE = "unreadable folder"
OTHER = "other kind of file"


def sorted_by_bytes(paths: Iterable[str]) -> list[str]:
    """Sort paths by their bytes, whatever order the disk lists them in."""
    return sorted(paths, key=os.fsencode)


def parquet_files(folder: Path) -> list[Path]:
    """Return all ``*.parquet`` below a folder.

    Linked files are followed: the Hugging Face cache is made of links to its blobs.

    Raises:
        UserError: If a link leads nowhere, or shards ``-00001-of-00003`` are missing or doubled.
    """
    named = list(folder.rglob("*.parquet"))
    for path in named:
        if path.is_symlink() and not path.exists():
            raise UserError(str(path), "is a link that leads nowhere", "fetch its file again")
    found = [path for path in named if path.is_file()]
    require_all_shards(found, "fetch them all, or rename those that are there")
    return sorted(found, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))


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


def walk_images(folder: Path, skipped: Counter[str]) -> Iterator[str]:
    """Yield the image files below a folder in the byte order of their paths.

    One folder's names are in memory at a time, and those of the folders that it lies in. Links
    that lead out of the folder are left out: whoever may write into a pool could otherwise have
    any file of this machine read. Linked folders are not entered.

    Args:
        folder: Where to begin.
        skipped: Receives how many are left out, by reason: ``OUTSIDE``, ``UNREADABLE``, and of
            other files ``OTHER``. Complete once the iterator ends.

    Yields:
        Paths of JPEG, PNG, WebP and BMP files by their names' endings.
    """
    root, top = os.path.realpath(folder), os.fspath(folder)
    # A stack, not recursion: whoever fills the folder decides how deep it is.
    open_folders = [(top, iter(_entries(top, root, skipped)))]
    while open_folders:
        parent, names = open_folders[-1]
        for name in names:
            path = os.path.join(parent, name)
            if name.endswith("/"):
                inner = path[:-1]
                open_folders.append((inner, iter(_entries(inner, root, skipped))))
                break
            yield path
        else:
            open_folders.pop()


def _entries(folder: str, root: str, skipped: Counter[str]) -> list[str]:
    """Return the names of images and, with a slash behind them, of folders to enter, in order.

    With its slash a folder's name sorts to where the paths of all that it holds do.
    """
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                leads_out = entry.is_symlink() and not _is_below(entry.path, root)
                if _is_folder(entry):
                    skipped[OUTSIDE] += leads_out
                    found += [] if entry.is_symlink() else [f"{entry.name}/"]
                elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
                    skipped[OTHER] += 1
                elif leads_out:
                    skipped[OUTSIDE] += 1
                else:
                    found.append(entry.name)
    except OSError:
        skipped[UNREADABLE] += 1
    return sorted_by_bytes(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _is_below(path: str, root: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(root)
