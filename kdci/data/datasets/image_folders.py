"""A split as a folder a class, as torchvision's ``ImageFolder`` reads it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.datasets.labelled import LabelledImages
from kdci.data.files.image_files import images_of_files
from kdci.data.files.listing import SUFFIXES, sorted_by_bytes
from kdci.errors import UserError

CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OTHER_IMAGES = frozenset({".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".heic", ".jp2"})
"""Images that are not read: told, for left out they would be missing without a word."""


def find_split_folder(
    path: Path, *, folders: Sequence[str], names: Sequence[str], tree: str
) -> Path:
    """Return the folder of a split.

    Args:
        path: Where to look.
        folders: Folders below it that may hold the split, the likeliest first.
        names: What the split may be called, the likeliest first.
        tree: What is expected, for the message.

    Raises:
        UserError: There is none.
    """
    for name in names:
        for folder in folders:
            if (path / folder / name).is_dir():
                return path / folder / name
    raise UserError(str(path), f"no folder {' or '.join(names)} in it", tree)


def class_folders(folder: Path, spec: DatasetSpec, tree: str) -> list[str]:
    """Return the names of a split's class folders in label order.

    That is the order of ``data.facts.class_names`` where a custom dataset has them, else the
    sorted order of the names, by which whoever trains with ``ImageFolder`` has numbered them.

    Args:
        folder: Of the split; hidden folders in it are ignored.
        spec: Says how many classes there are, and maybe which.
        tree: What is expected, for the message.

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
    if spec.name != CUSTOM or not spec.named:
        return found
    for name in found:
        if name not in spec.class_names:
            what = f"class folder {name} is none of data.facts.class_names"
            raise UserError(str(folder), what, "name the classes as their folders are")
    return list(spec.class_names)


def load_class_folders(folder: Path, classes: Sequence[str], spec: DatasetSpec) -> LabelledImages:
    """Read a split class by class, files by the bytes of their paths.

    Args:
        folder: Of the split.
        classes: Names of its folders in label order.
        spec: Size and channels.

    Raises:
        UserError: If a class has no images, or an image another size or format.
        IntegrityError: If an image that is decoded now is damaged.
    """
    files, labels = _listed(folder, classes)
    return LabelledImages(images_of_files(files, spec), labels)


def check_class_folders(folder: Path, classes: Sequence[str], spec: DatasetSpec) -> None:
    """Check that every class has an image, and that the first one can be read.

    Raises:
        UserError: If a class has no images, or the first one has another size.
        IntegrityError: If the first image is damaged.
    """
    firsts = [next(_images_of(folder / name), None) for name in classes]
    for name, first in zip(classes, firsts, strict=True):
        if first is None:
            raise _empty(folder / name)
    images_of_files([str(firsts[0])], spec)


def _listed(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted_by_bytes(_images_of(folder / name))
        if not found:
            raise _empty(folder / name)
        files += found
        labels += [label] * len(found)
    return files, torch.tensor(labels, dtype=torch.int64)


def _empty(folder: Path) -> UserError:
    kinds = ", ".join(sorted(SUFFIXES))
    return UserError(str(folder), "no images of this class", f"expected {kinds} in it")


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
