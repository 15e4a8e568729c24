"""CIFAR-10 and CIFAR-100 as users hold them: Hugging Face Parquet, or torchvision's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.cifar_batches import read_batch
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.files.parquet import check_labelled, read_labelled
from kdci.data.files.shards import find_shards
from kdci.errors import UserError


@dataclass(frozen=True)
class Form:
    """What differs between the two.

    Attributes:
        title: Name for messages.
        folder: Folder of the python version's files.
        batches: Its files by split, in order.
        labels: Key of the labels in them.
        parquet: Folder of the Parquet files below the dataset's own.
    """

    title: str
    folder: str
    batches: dict[Split, tuple[str, ...]]
    labels: str
    parquet: str

    def tree(self, name: str) -> str:
        """Return what is expected below data.path."""
        files = [file for split in self.batches.values() for file in split]
        return (
            f"expected PATH/{name}/{self.parquet}/{{train,test}}-*.parquet, or "
            f"PATH/{self.folder}/{{{','.join(files)}}}"
        )


FORMS = {
    "cifar10": Form(
        title="CIFAR-10",
        folder="cifar-10-batches-py",
        batches={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        labels="labels",
        parquet="plain_text",
    ),
    "cifar100": Form(
        title="CIFAR-100",
        folder="cifar-100-python",
        batches={"train": ("train",), "test": ("test",)},
        labels="fine_labels",
        parquet="cifar100",
    ),
}


def load_cifar(spec: DatasetSpec, path: Path | None, split: Split) -> LabelledImages:
    """Read one split of CIFAR-10 or CIFAR-100.

    Args:
        spec: Which of the two.
        path: The folder that holds the dataset's, or any folder from there down to the files.
            Parquet wins where both forms are there.
        split: ``train`` or ``test``.

    Returns:
        (N, 3, 32, 32) uint8 images with their labels, of CIFAR-100 the fine ones.

    Raises:
        UserError: If files are missing or do not hold 32x32 images with integer labels.
        IntegrityError: If a file or an image is damaged, or a pickle holds anything but data.
    """
    files = find_files(spec, path, split)
    if files[0].suffix == ".parquet":
        return read_labelled(files, spec)
    batches = [read_batch(file, labels=FORMS[spec.name].labels) for file in files]
    return LabelledImages(
        torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
    )


def check_cifar(spec: DatasetSpec, path: Path | None, splits: Sequence[Split]) -> None:
    """Check that the splits are there, and of Parquet files the columns and the first image.

    Raises:
        UserError: If files are missing or of the wrong kind.
        IntegrityError: If a Parquet file's footer or first image is damaged.
    """
    for split in splits:
        for file in find_files(spec, path, split):
            if file.suffix == ".parquet":
                check_labelled(file, spec)


def find_files(spec: DatasetSpec, path: Path | None, split: Split) -> list[Path]:
    """Return the files of a split, in order; all are Parquet or all are batches.

    Raises:
        UserError: If the folder, a batch or a Parquet shard is missing.
    """
    form, name = FORMS[spec.name], spec.name
    tree = form.tree(name)
    if path is None:
        raise UserError("data.path", f"{name} needs the folder that holds its files", tree)
    if not path.is_dir():
        raise UserError(str(path), "no such folder", tree)
    below = (".", form.parquet, "data")
    folders = [*below, *(f"{name}/{folder}" for folder in below)]
    shards = find_shards(path, folders=folders, names=(split,), tree=tree)
    if shards:
        return shards
    for folder in (".", form.folder, name, f"{name}/{form.folder}"):
        files = [path / folder / file for file in form.batches[split]]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise UserError(str(path / folder), f"{', '.join(missing)} missing", tree)
    raise UserError(str(path), f"no {split} files of {form.title} found", tree)
