"""A split as a folder a class, as torchvision's ``ImageFolder`` reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.files.listing import SUFFIXES, sorted_by_bytes
from kdci.errors import UserError

CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OTHER_IMAGES = frozenset({".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".jp2"})
"""Images that are not read: told, for left out they would be missing without a word."""


def files_of_classes(
    folder: Path, spec: DatasetSpec, tree: str, *, firsts: bool = False
) -> tuple[list[str], list[int]]:
    """Return the image files of a split and their labels, class by class.

    Args:
        folder: Of the split; hidden folders in it are ignored.
        spec: Says how many classes there are, and maybe which.
        tree: What is expected, for messages.
        firsts: One file of each class alone, whichever is found first; else all of them, by the
            bytes of their paths.

    Raises:
        UserError: If classes are not those of the spec, or one has no images, or some of a format
            that is not read.
    """
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_folders(folder, spec, tree)):
        found = sorted_by_bytes(islice(_images_of(folder / name), 1 if firsts else None))
        if not found:
            kinds = f"expected {', '.join(sorted(SUFFIXES))} in it"
            raise UserError(str(folder / name), "no images of this class", kinds)
        files += found
        labels += [label] * len(found)
    return files, labels


def class_folders(folder: Path, spec: DatasetSpec, tree: str) -> list[str]:
    """Return the names of a split's class folders in label order.

    That is the order of ``data.facts.class_names`` where a custom dataset has them, else the
    sorted order of the names, by which whoever trains with ``ImageFolder`` has numbered them.

    Raises:
        UserError: If they are not as many, have other names, or have names that are no names.
    """
    # As text, not by bytes: this is how ImageFolder sorts them.
    found = sorted(e.name for e in os.scandir(folder) if e.is_dir() and e.name[0] != ".")
    if not found and next(_image_names(os.listdir(folder)), None) is not None:
        raise UserError(str(folder), "images lie in it without folders of classes", tree)
    for name in found:
        if not CLASS_NAME.fullmatch(name):
            what = f"class folder {ascii(name)} has an unusual name"
            fix = "rename it: letters, digits, `.`, `_` and `-`, at most 64"
            raise UserError(str(folder), what, fix)
    if len(found) != spec.num_classes:
        what = f"{len(found)} class folders, {spec.name} has {spec.num_classes} classes"
        raise UserError(str(folder), what, tree)
    if spec.name != CUSTOM or not spec.stated_names:
        return found
    for name in found:
        if name not in spec.class_names:
            what = f"class folder {name} is none of data.facts.class_names"
            raise UserError(str(folder), what, "name the classes as their folders are")
    return list(spec.class_names)


def _images_of(folder: Path) -> Iterator[str]:
    """Yield the paths of all images below a folder, as ImageFolder finds them.

    Linked folders are entered too, but none twice: links may lead in a circle.
    """
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_new(parent, name, seen)]
        for name in _image_names(names):
            if Path(name).suffix.lower() in OTHER_IMAGES:
                fix = f"convert such files: {', '.join(sorted(SUFFIXES))} are read"
                raise UserError(os.path.join(parent, name), "is of a format that is not read", fix)
            yield os.path.join(parent, name)


def _is_new(parent: str, name: str, seen: set[str]) -> bool:
    """Tell whether a folder is to be entered, and note that it is."""
    real = os.path.realpath(os.path.join(parent, name))
    if name[0] == "." or real in seen:
        return False
    seen.add(real)
    return True


def _image_names(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name[0] != "." and Path(name).suffix.lower() in SUFFIXES | OTHER_IMAGES:
            yield name
