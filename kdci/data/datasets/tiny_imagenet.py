"""Tiny-ImageNet's validation split in its official folder: one table says what each file shows.

Labels are the places of the wnids in sorted order, as of whoever trains with ``ImageFolder``
and of the Parquet files. ``wnids.txt`` has another order; here it only says which there are.
"""

from __future__ import annotations

from pathlib import Path

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.image_folders import class_folders
from kdci.errors import UserError

ANNOTATIONS = "val_annotations.txt"


def is_annotated(folder: Path, spec: DatasetSpec) -> bool:
    """Tell the official layout of the validation split from a folder a class."""
    if spec.name != "tiny-imagenet" or folder.name != "val":
        return False
    inner = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    return (folder / ANNOTATIONS).is_file() or inner == ["images"]


def annotated_files(folder: Path, spec: DatasetSpec, tree: str) -> tuple[list[str], list[int]]:
    """Return files and labels in the order of the annotations, one `file wnid box` a line.

    Args:
        folder: Of the split.
        spec: Says how many classes there are.
        tree: What is expected, for messages.

    Raises:
        UserError: If the table or a file of it is missing, or names another class.
    """
    table = folder / ANNOTATIONS
    if not table.is_file():
        raise UserError(str(table), "no such file", tree)
    names = [line.split() for line in table.read_text("utf-8", "replace").splitlines()]
    rows = [(row[0], row[1]) for row in names if len(row) > 1]
    if not rows or len(rows) < len([row for row in names if row]):
        raise UserError(str(table), "not a table of files and wnids", tree)
    label_of = {wnid: label for label, wnid in enumerate(_wnids(folder, spec, tree))}
    for file, wnid in rows:
        if wnid not in label_of:
            what = f"{ascii(file)} is of {ascii(wnid)}, which is none of the classes"
            raise UserError(str(table), what, tree)
        if Path(file).name != file:
            raise UserError(str(table), f"{ascii(file)} is no file name", tree)
    files = [folder / "images" / file for file, _ in rows]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(str(missing), f"is in {ANNOTATIONS}, but not here", tree)
    return [str(file) for file in files], [label_of[wnid] for _, wnid in rows]


def _wnids(folder: Path, spec: DatasetSpec, tree: str) -> list[str]:
    """Return the classes in label order, from ``wnids.txt`` beside the splits, or from train."""
    listed = folder.parent / "wnids.txt"
    if not listed.is_file():
        train = folder.parent / "train"
        if not train.is_dir():
            raise UserError(str(listed), "no such file", tree)
        return class_folders(train, spec, tree)
    wnids = sorted(set(listed.read_text("utf-8", "replace").split()))
    if len(wnids) != spec.num_classes:
        what = f"{len(wnids)} classes, {spec.name} has {spec.num_classes}"
        raise UserError(str(listed), what, tree)
    return wnids
