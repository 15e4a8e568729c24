"""ImageNet, and any dataset of the user's: a folder a class, or Parquet; images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.datasets.image_folders import (
    check_class_folders,
    class_folders,
    find_split_folder,
    load_class_folders,
)
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.files.parquet import check_labelled, read_labelled
from kdci.data.files.shards import find_shards
from kdci.errors import UserError


@dataclass(frozen=True)
class Places:
    """Where the files of a dataset may lie.

    Attributes:
        folders: Folders below data.path, the likeliest first.
        parquet_folders: The same, for Parquet.
        splits: What each split may be called, the likeliest first.
        tree: What is expected, for messages.
    """

    folders: tuple[str, ...]
    parquet_folders: tuple[str, ...]
    splits: dict[Split, tuple[str, ...]]
    tree: str


PLACES = {
    # ImageNet's own test images have no labels: the field tests on its validation split.
    "imagenet": Places(
        folders=(".", "imagenet", "ILSVRC/Data/CLS-LOC"),
        parquet_folders=(".", "data", "imagenet", "imagenet/data"),
        splits={"train": ("train",), "test": ("val", "validation")},
        tree="expected PATH/{train,val}/<wnid>/*.JPEG with 1000 folders in each",
    ),
    CUSTOM: Places(
        folders=(".",),
        parquet_folders=(".", "data"),
        splits={"train": ("train",), "test": ("test", "val", "valid", "validation")},
        tree="expected PATH/{train,test}/<class>/*.{jpg,png,...}, or "
        "PATH/{train,test}-*.parquet; test may be called val, valid or validation",
    ),
}


def load_photos(spec: DatasetSpec, path: Path | None, split: Split) -> LabelledImages:
    """Read one split.

    Args:
        spec: ImageNet's, or that of a custom dataset.
        path: The folder that holds the splits.
        split: ``train`` or ``test``; the latter may be called val or validation there.

    Returns:
        Images, cut square and resized, maybe decoded when they are asked for; and labels: the
        place of the class folder among them, or Parquet's.

    Raises:
        UserError: If files are missing, or classes are not those of the spec.
        IntegrityError: If a file is damaged.
    """
    found = _find(spec, path, split)
    if isinstance(found, list):
        return read_labelled(found, spec)
    return load_class_folders(found, class_folders(found, spec, PLACES[spec.name].tree), spec)


def check_photos(spec: DatasetSpec, path: Path | None, splits: Sequence[Split]) -> None:
    """Check that the splits are there, every class has an image, and the first one is one.

    Raises:
        UserError: If files are missing, or classes are not those of the spec.
        IntegrityError: If the first image is damaged.
    """
    for split in splits:
        found = _find(spec, path, split)
        if isinstance(found, list):
            for file in found:
                check_labelled(file, spec)
        else:
            classes = class_folders(found, spec, PLACES[spec.name].tree)
            check_class_folders(found, classes, spec)


def _find(spec: DatasetSpec, path: Path | None, split: Split) -> list[Path] | Path:
    """Return the Parquet files of a split, or its folder."""
    places = PLACES[spec.name]
    if path is None:
        what = f"{spec.name} needs the folder that holds its files"
        raise UserError("data.path", what, places.tree)
    if not path.is_dir():
        raise UserError(str(path), "no such folder", places.tree)
    names = places.splits[split]
    shards = find_shards(path, folders=places.parquet_folders, names=names, tree=places.tree)
    if shards:
        return shards
    return find_split_folder(path, folders=places.folders, names=names, tree=places.tree)
