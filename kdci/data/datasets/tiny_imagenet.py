"""Tiny-ImageNet in its official folders (``tiny-imagenet-200``), or as Parquet.

Labels are the places of the wnids in sorted order, as of whoever trains with ``ImageFolder``
and of the Parquet files. ``wnids.txt`` has another order; here it only says which there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.image_folders import check_class_folders, class_folders, load_class_folders
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.files.image_files import images_of_files
from kdci.data.files.parquet import check_labelled, read_labelled
from kdci.data.files.shards import find_shards
from kdci.errors import UserError

FOLDERS = (".", "tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200", "tiny-imagenet")
PARQUET_FOLDERS = (".", "data", "tiny-imagenet", "tiny-imagenet/data")
ANNOTATIONS = "val_annotations.txt"
TREE = (
    "expected PATH/tiny-imagenet-200/{wnids.txt,train/<wnid>/images/*.JPEG,val/images/*.JPEG,"
    "val/val_annotations.txt}, or PATH/data/{train,valid}-*.parquet"
)
# The official test images have no labels: the field tests on the validation split.
FOLDER_NAMES: dict[Split, str] = {"train": "train", "test": "val"}
PARQUET_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("valid", "validation", "val"),
}


def load_tiny_imagenet(spec: DatasetSpec, path: Path | None, split: Split) -> LabelledImages:
    """Read one split.

    Args:
        spec: The dataset's.
        path: The folder that holds ``tiny-imagenet-200``, that folder, or one with Parquet.
        split: ``train``, or ``test``: the official validation split, from its annotations or,
            where it was sorted into them, from a folder a class.

    Returns:
        (N, 3, 64, 64) uint8 images with their labels.

    Raises:
        UserError: If files are missing, or classes or sizes are not this dataset's.
        IntegrityError: If an image or a Parquet file is damaged.
    """
    found = _find(path, split)
    if isinstance(found, list):
        return read_labelled(found, spec)
    if _is_annotated(found):
        files, labels = _annotated(found, spec)
        return LabelledImages(images_of_files(files, spec), torch.tensor(labels))
    return load_class_folders(found, class_folders(found, spec, TREE), spec)


def check_tiny_imagenet(spec: DatasetSpec, path: Path | None, splits: Sequence[Split]) -> None:
    """Check that the splits are there with all their classes, and the first image.

    Raises:
        UserError: If files are missing, or classes or sizes are not this dataset's.
        IntegrityError: If the first image or a Parquet file's footer is damaged.
    """
    for split in splits:
        found = _find(path, split)
        if isinstance(found, list):
            for file in found:
                check_labelled(file, spec)
        elif _is_annotated(found):
            files, _ = _annotated(found, spec)
            images_of_files(files[:1], spec)
        else:
            check_class_folders(found, class_folders(found, spec, TREE), spec)


def _find(path: Path | None, split: Split) -> list[Path] | Path:
    """Return the Parquet files of a split, or its folder."""
    if path is None:
        what = "tiny-imagenet needs the folder that holds its files"
        raise UserError("data.path", what, TREE)
    if not path.is_dir():
        raise UserError(str(path), "no such folder", TREE)
    shards = find_shards(path, folders=PARQUET_FOLDERS, names=PARQUET_NAMES[split], tree=TREE)
    if shards:
        return shards
    for folder in FOLDERS:
        if (path / folder / FOLDER_NAMES[split]).is_dir():
            return path / folder / FOLDER_NAMES[split]
    raise UserError(str(path), f"no folder {FOLDER_NAMES[split]} in it", TREE)


def _is_annotated(folder: Path) -> bool:
    """Tell the official layout of the validation split from a folder a class."""
    return folder.name == "val" and ((folder / ANNOTATIONS).is_file() or _is_flat(folder))


def _is_flat(folder: Path) -> bool:
    return [entry.name for entry in folder.iterdir() if entry.is_dir()] == ["images"]


def _annotated(folder: Path, spec: DatasetSpec) -> tuple[list[str], list[int]]:
    """Return files and labels in the order of the annotations, one `file wnid box` a line."""
    table = folder / ANNOTATIONS
    if not table.is_file():
        raise UserError(str(table), "no such file", TREE)
    names = [line.split() for line in table.read_text("utf-8", "replace").splitlines()]
    rows = [(row[0], row[1]) for row in names if len(row) > 1]
    if not rows or len(rows) < len([row for row in names if row]):
        raise UserError(str(table), "not a table of files and wnids", TREE)
    label_of = {wnid: label for label, wnid in enumerate(_wnids(folder, spec))}
    for file, wnid in rows:
        if wnid not in label_of:
            what = f"{ascii(file)} is of {ascii(wnid)}, which is none of the classes"
            raise UserError(str(table), what, TREE)
        if Path(file).name != file:
            raise UserError(str(table), f"{ascii(file)} is no file name", TREE)
    files = [folder / "images" / file for file, _ in rows]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(str(missing), f"is in {ANNOTATIONS}, but not here", TREE)
    return [str(file) for file in files], [label_of[wnid] for _, wnid in rows]


def _wnids(folder: Path, spec: DatasetSpec) -> list[str]:
    """Return the classes in label order, from ``wnids.txt`` beside the splits, or from train."""
    listed = folder.parent / "wnids.txt"
    if not listed.is_file():
        train = folder.parent / "train"
        if not train.is_dir():
            raise UserError(str(listed), "no such file", TREE)
        return class_folders(train, spec, TREE)
    wnids = sorted(set(listed.read_text("utf-8", "replace").split()))
    if len(wnids) != spec.num_classes:
        what = f"{len(wnids)} classes, {spec.name} has {spec.num_classes}"
        raise UserError(str(listed), what, TREE)
    return wnids
