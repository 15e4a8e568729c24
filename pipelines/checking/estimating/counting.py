"""How many images there are: counted where the files lie, else as they are published."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdci.config.catalog import DatasetSpec
from kdci.config.params import Params
from kdci.data.datasets.labelled import Split
from kdci.data.datasets.loading import load_split
from kdci.data.datasets.places import find_split
from kdci.data.files.image_files import IN_MEMORY_BYTES
from kdci.data.files.listing import SUFFIXES, parquet_files, walk_images
from kdci.data.files.parquet import count_rows
from kdci.data.open_world.candidates import PoolPart, list_part
from kdci.errors import KdciError
from kdci.store.layout import Layout

COUNTING_SECONDS = 5.0
"""Files of a split are counted for about this long."""
_CIFAR_BATCH = 10_000
PUBLISHED: dict[str, dict[str, int]] = {
    "cifar10": {"train": 50_000, "test": 10_000, "bytes": 170_498_071},
    "cifar100": {"train": 50_000, "test": 10_000, "bytes": 169_001_437},
    "tiny-imagenet": {"train": 100_000, "test": 10_000, "bytes": 248_100_043},
    "imagenet": {"train": 1_281_167, "test": 50_000, "bytes": 154_642_401_280},
}
"""Images of each split, and bytes of the archives that the authors publish: of ImageNet without its
unlabelled test images."""


@dataclass(frozen=True)
class Counted:
    """A source of images.

    Attributes:
        num_images: How many; None: not known.
        num_bytes: What its files take; of bundled and missing ones 0.
        is_found: Whether it was counted, or is what is published.
        is_lazy: Whether images are decoded anew in each pass.
    """

    num_images: int | None
    num_bytes: int = 0
    is_found: bool = True
    is_lazy: bool = False


def count_split(params: Params, layout: Layout, split: Split) -> Counted:
    """Count the images of a split of the params' dataset."""
    spec = params.data.spec
    if spec.bundled:
        return Counted(len(load_split(spec, path=None, split=split)))
    path = layout.root / params.data.path if params.data.path else None
    try:
        found = None if path is None else _count_files(spec, path, split)
    except (KdciError, OSError):
        found = None  # told by the look at the data itself
    if found is not None:
        return found
    published = PUBLISHED.get(spec.name, {}).get(split)
    return Counted(published, is_found=False, is_lazy=_is_lazy(spec, published or 0))


def count_part(part: PoolPart, wanted: int) -> Counted:
    """Count a source of open-world images.

    Args:
        part: Where it lies.
        wanted: What methods keep of it: at least so many there have to be.
    """
    try:
        number = list_part(part).wanted
        return Counted(number, _pool_bytes(part))
    except (KdciError, OSError):
        return Counted(part.num_images or wanted, is_found=False)


def _count_files(spec: DatasetSpec, path: Path, split: Split) -> Counted | None:
    files = find_split(spec, path, split)
    if isinstance(files, Path):
        return _count_folder(spec, files)
    num_bytes = sum(file.stat().st_size for file in files)
    if files[0].suffix == ".parquet":
        return Counted(count_rows(files), num_bytes)
    whole = PUBLISHED[spec.name][split]
    return Counted(_CIFAR_BATCH * len(files) if spec.name == "cifar10" else whole, num_bytes)


def _count_folder(spec: DatasetSpec, folder: Path) -> Counted | None:
    """Count image files and their bytes; None: it would take too long."""
    deadline = time.monotonic() + COUNTING_SECONDS
    number = num_bytes = 0
    for size in _image_sizes(str(folder)):
        number, num_bytes = number + 1, num_bytes + size
        if time.monotonic() > deadline:
            return None
    return Counted(number, num_bytes, is_lazy=_is_lazy(spec, number))


def _image_sizes(folder: str, seen: frozenset[str] = frozenset()) -> Iterator[int]:
    """Yield the bytes of each image below a folder; links in a circle end where they began."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _image_sizes(entry.path, seen | {real})
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield entry.stat().st_size


def _is_lazy(spec: DatasetSpec, number: int) -> bool:
    """Tell whether a split's images stay in files: as ``kdci.data.files.image_files`` does."""
    return spec.square_share is not None and number * image_bytes(spec) > IN_MEMORY_BYTES


def image_bytes(spec: DatasetSpec) -> int:
    """Return the bytes of one decoded image."""
    return spec.channels * spec.image_size**2


def _pool_bytes(part: PoolPart) -> int:
    if part.path is None:
        return 0
    if part.source == "parquet":
        return sum(file.stat().st_size for file in parquet_files(part.path))
    return sum(os.stat(file).st_size for file in walk_images(part.path, Counter()))
