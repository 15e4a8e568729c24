"""CIFAR-10 as users hold it: Hugging Face Parquet, or torchvision's ``cifar-10-batches-py``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from kdci.catalog import DATASETS
from kdci.data.cifar_batches import read_batch
from kdci.data.labelled import LabelledImages, Split
from kdci.data.parquet import check_labelled, read_labelled
from kdci.errors import UserError

SPEC = DATASETS["cifar10"]
TREE = (
    "expected PATH/cifar10/plain_text/{train,test}-*.parquet, or "
    "PATH/cifar-10-batches-py/{data_batch_1,...,data_batch_5,test_batch}"
)
PARQUET_FOLDERS = (".", "plain_text", "data", "cifar10", "cifar10/plain_text", "cifar10/data")
BATCH_FOLDERS = (".", "cifar-10-batches-py", "cifar10", "cifar10/cifar-10-batches-py")
BATCH_NAMES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}


def load_cifar10(path: Path | None, split: Split) -> LabelledImages:
    """Read one split of CIFAR-10.

    Args:
        path: The folder that holds ``cifar10/`` or ``cifar-10-batches-py/``, or any folder
            from there down to the files. Parquet wins where both are there.
        split: ``train`` or ``test``.

    Returns:
        (N, 3, 32, 32) uint8 images with their labels.

    Raises:
        UserError: If files are missing or do not hold 32x32 images with integer labels.
        IntegrityError: If a file or an image is damaged, or a pickle holds anything but data.
    """
    files = find_files(path, split)
    if files[0].suffix == ".parquet":
        return read_labelled(files, image_size=SPEC.image_size, channels=SPEC.channels)
    batches = [read_batch(file) for file in files]
    return LabelledImages(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )


def check_cifar10(path: Path | None, splits: Sequence[Split]) -> None:
    """Check that the splits are there, and of Parquet files the columns and the first image.

    Raises:
        UserError: If files are missing or of the wrong kind.
        IntegrityError: If a Parquet file's footer or first image is damaged.
    """
    for split in splits:
        for file in find_files(path, split):
            if file.suffix == ".parquet":
                check_labelled(file, image_size=SPEC.image_size, channels=SPEC.channels)


def find_files(path: Path | None, split: Split) -> list[Path]:
    """Return the files of a split, in order; all are Parquet or all are batches.

    Raises:
        UserError: If the folder, a batch or a Parquet shard is missing.
    """
    if path is None:
        raise UserError("data.path", "cifar10 needs the folder that holds its files", TREE)
    if not path.is_dir():
        raise UserError(str(path), "no such folder", TREE)
    for folder in PARQUET_FOLDERS:
        files = sorted((path / folder).glob(f"{split}-*.parquet"))
        if files:
            _require_all_shards(files)
            return files
    for folder in BATCH_FOLDERS:
        files = [path / folder / name for name in BATCH_NAMES[split]]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise UserError(str(path / folder), f"{', '.join(missing)} missing", TREE)
    raise UserError(str(path), f"no {split} files of CIFAR-10 found", TREE)


def _require_all_shards(files: Sequence[Path]) -> None:
    """Refuse a split of which some shards ``-00001-of-00003`` are missing or doubled."""
    for file in files:
        numbered = re.search(r"-\d+-of-(\d+)", file.stem)
        if numbered and int(numbered[1]) != len(files):
            raise UserError(
                str(file), f"one of {int(numbered[1])} shards, {len(files)} found", TREE
            )
