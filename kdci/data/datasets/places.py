"""Where the files of a dataset may lie, and which of them hold a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.datasets.labelled import Split
from kdci.data.files.listing import find_shards
from kdci.errors import UserError


@dataclass(frozen=True)
class Batches:
    """The files of CIFAR's python version.

    Attributes:
        title: Name of the dataset for messages.
        folder: That they lie in.
        files: By split, in order.
        labels: Key of the labels in them.
    """

    title: str
    folder: str
    files: dict[Split, tuple[str, ...]]
    labels: str

    @property
    def names(self) -> tuple[str, ...]:
        """The files of both splits."""
        return (*self.files["train"], *self.files["test"])


@dataclass(frozen=True)
class Places:
    """Where the files of a dataset may lie.

    Attributes:
        tree: What is expected below data.path, for messages.
        parquet: Folders of Parquet files below it, the likeliest first.
        folders: Folders that may hold a folder a split, the likeliest first.
        tests: What the test split may be called, the likeliest first.
        test_folders: What its folder may be called, where that differs.
        batches: CIFAR's own files, in the place of folders.
    """

    tree: str
    parquet: tuple[str, ...]
    folders: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("test",)
    test_folders: tuple[str, ...] = ()
    batches: Batches | None = None


def _of_cifar(name: str, parquet: str, batches: Batches) -> Places:
    below = (".", parquet, "data")
    return Places(
        tree=f"expected PATH/{name}/{parquet}/{{train,test}}-*.parquet, or "
        f"PATH/{batches.folder}/{{{','.join(batches.names)}}}",
        parquet=(*below, *(f"{name}/{folder}" for folder in below)),
        folders=(".", batches.folder, name, f"{name}/{batches.folder}"),
        batches=batches,
    )


_FIVE = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR = {
    "cifar10": Batches(
        "CIFAR-10", "cifar-10-batches-py", {"train": _FIVE, "test": ("test_batch",)}, "labels"
    ),
    "cifar100": Batches(
        "CIFAR-100", "cifar-100-python", {"train": ("train",), "test": ("test",)}, "fine_labels"
    ),
}
PLACES = {
    "cifar10": _of_cifar("cifar10", "plain_text", CIFAR["cifar10"]),
    "cifar100": _of_cifar("cifar100", "cifar100", CIFAR["cifar100"]),
    # Of these two the official test images have no labels: the field tests on the validation split.
    "tiny-imagenet": Places(
        tree="expected PATH/tiny-imagenet-200/{wnids.txt,train/<wnid>/images/*.JPEG,"
        "val/images/*.JPEG,val/val_annotations.txt}, or PATH/data/{train,valid}-*.parquet",
        parquet=(".", "data", "tiny-imagenet", "tiny-imagenet/data"),
        folders=(".", "tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200", "tiny-imagenet"),
        tests=("valid", "validation", "val"),
        test_folders=("val",),
    ),
    "imagenet": Places(
        tree="expected PATH/{train,val}/<wnid>/*.JPEG with 1000 folders in each",
        parquet=(".", "data", "imagenet", "imagenet/data"),
        folders=(".", "imagenet", "ILSVRC/Data/CLS-LOC"),
        tests=("val", "validation"),
    ),
    CUSTOM: Places(
        tree="expected PATH/{train,test}/<class>/*.{jpg,png,...}, or "
        "PATH/{train,test}-*.parquet; test may be called val, valid or validation",
        parquet=(".", "data"),
        folders=(".",),
        tests=("test", "val", "valid", "validation"),
    ),
}
"""Of every dataset that is not bundled."""


def find_split(spec: DatasetSpec, path: Path | None, split: Split) -> list[Path] | Path:
    """Return the files of a split in order, all Parquet or all CIFAR's own, or its folder.

    Args:
        spec: The dataset's.
        path: A folder that holds the dataset. Parquet wins where several forms are there.
        split: ``train`` or ``test``.

    Raises:
        UserError: There is no such folder, nothing of the split in it, or not all.
    """
    places = PLACES[spec.name]
    if path is None:
        what = f"{spec.name} needs the folder that holds its files"
        raise UserError("data.path", what, places.tree)
    if not path.is_dir():
        raise UserError(str(path), "no such folder", places.tree)
    names = ("train",) if split == "train" else places.tests
    shards = find_shards(path, folders=places.parquet, names=names, tree=places.tree)
    if shards:
        return shards
    if places.batches is not None:
        return _find_batches(places, places.batches, path, split)
    names = (split == "test" and places.test_folders) or names
    for name in names:
        for folder in places.folders:
            if (path / folder / name).is_dir():
                return path / folder / name
    raise UserError(str(path), f"no folder {' or '.join(names)} in it", places.tree)


def _find_batches(places: Places, batches: Batches, path: Path, split: Split) -> list[Path]:
    for folder in places.folders:
        files = [path / folder / file for file in batches.files[split]]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise UserError(str(path / folder), f"{', '.join(missing)} missing", places.tree)
    raise UserError(str(path), f"no {split} files of {batches.title} found", places.tree)
