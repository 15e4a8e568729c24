"""Open-world pools: unlabelled images for the sampling-based methods."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdci.data.decoding import MAX_BYTES, UndecodableError, decode_all
from kdci.data.parquet import count_rows, iter_blobs, read_blob
from kdci.data.photographs import photograph_crops
from kdci.errors import UserError

Item = TypeVar("Item")
Source = Literal["photographs", "parquet", "folder"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
MAX_UNDECODABLE = 0.05
ITEMS_PER_CHUNK = 1024
OUTSIDE = "symlink out of the folder"


@dataclass(frozen=True)
class OpenWorldPool:
    """A pool of unlabelled images.

    Attributes:
        images: (M, C, H, W) uint8.
        skipped: How many candidates were left out, by reason.
    """

    images: Tensor
    skipped: dict[str, int] = field(default_factory=dict)


def load_open_world(
    source: Source,
    *,
    path: Path | None,
    num_images: int,
    image_size: int,
    channels: int,
    seed: int,
) -> OpenWorldPool:
    """Load a pool.

    Args:
        source: ``photographs`` (random crops of two bundled ones), ``parquet`` (every
            *.parquet below a folder) or ``folder`` (every JPEG, PNG, WebP and BMP below it).
            Files are taken in the byte order of their relative paths; of each image the
            largest centred square is resized, bilinear with antialiasing.
        path: The folder; ``None`` for photographs.
        num_images: The first so many that can be decoded, or all there are; 0 means all.
        image_size: Height and width of the result in pixels.
        channels: 1 for grey, 3 for RGB.
        seed: For photographs' crops; the other sources draw nothing.

    Returns:
        The pool, and what was skipped in it.

    Raises:
        UserError: If the path is missing or superfluous, no image is found, or more than
            5 % of the images can not be decoded.
        IntegrityError: If a Parquet file itself is damaged.
        ValueError: If ``num_images`` is negative.
    """
    files, skipped = _listed(source, path)
    if num_images < 0:
        raise ValueError(f"num_images must be 0 or more, got {num_images}")
    if path is None:
        if num_images == 0:
            raise UserError("photographs", "endlessly many crops", "ask for a number above 0")
        return OpenWorldPool(
            photograph_crops(
                num_images=num_images, image_size=image_size, channels=channels, seed=seed
            )
        )
    shape = (channels, image_size, image_size)
    if source == "parquet":
        rows = count_rows(files)
        return _fill(path, iter_blobs(files), read_blob, rows, num_images, shape, skipped)
    return _fill(path, iter(files), _read_file, len(files), num_images, shape, skipped)


def check_open_world(source: Source, *, path: Path | None) -> None:
    """Check quickly that a source can be opened, without decoding it.

    Raises:
        UserError: If the path is missing or superfluous, or a folder has no such files.
        IntegrityError: If a Parquet file is damaged at its end.
    """
    files, _ = _listed(source, path)
    if source == "parquet":
        count_rows(files)


def _listed(source: Source, path: Path | None) -> tuple[list[Path], Counter[str]]:
    """Return the files of a source in order, and what was left out by reason."""
    if source == "photographs":
        if path is not None:
            raise UserError(str(path), "photographs are bundled, no path", "set it to null")
        return [], Counter()
    if path is None:
        raise UserError(f"open-world {source}", "no path", "give the folder of the images")
    if not path.is_dir():
        raise UserError(str(path), "no such folder", "give the folder of the images")
    files, skipped = _parquet_files(path) if source == "parquet" else _image_files(path)
    if not files:
        kinds = "*.parquet" if source == "parquet" else ", ".join(sorted(SUFFIXES))
        raise UserError(str(path), "no images in it", f"expected {kinds} below it")
    return files, skipped


def _fill(
    path: Path,
    items: Iterator[Item],
    read: Callable[[Item], bytes],
    available: int,
    num_images: int,
    shape: tuple[int, int, int],
    skipped: Counter[str],
) -> OpenWorldPool:
    """Decode items until there are enough images or no more items."""
    wanted = min(num_images, available) if num_images else available
    images = np.empty((wanted, *shape), dtype=np.uint8)
    undecodable: Counter[str] = Counter()
    count = 0
    # Never more items than images are missing: what lies beyond them must not matter.
    while chunk := list(islice(items, min(ITEMS_PER_CHUNK, wanted - count))):
        for decoded in decode_all(chunk, read, channels=shape[0], square=shape[1]):
            if isinstance(decoded, UndecodableError):
                undecodable[decoded.reason] += 1
            else:
                images[count] = decoded
                count += 1
    bad, seen = undecodable.total(), undecodable.total() + count
    if count == 0 or bad > MAX_UNDECODABLE * seen:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(undecodable.items()))
        raise UserError(
            str(path),
            f"{bad} of {seen} images can not be used ({reasons or 'nothing found'})",
            f"at most {MAX_UNDECODABLE:.0%} may be bad",
        )
    return OpenWorldPool(
        torch.from_numpy(images[:count]), dict(sorted((skipped + undecodable).items()))
    )


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UndecodableError("not an image")
        if status.st_size > MAX_BYTES:
            raise UndecodableError("too large")
        return path.read_bytes()
    except OSError as error:
        raise UndecodableError("unreadable") from error


def _parquet_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    # Linked files are followed: the Hugging Face cache is made of links to its blobs.
    files = [path for path in folder.rglob("*.parquet") if path.is_file()]
    return _sorted_below(folder, files), Counter()


def _image_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the image files below a folder, and the links and folders left out."""
    root = Path(os.path.realpath(folder))
    found: list[Path] = []
    skipped: Counter[str] = Counter()

    def note_unreadable(error: OSError) -> None:
        skipped["unreadable folder"] += 1

    for parent, folders, files in os.walk(folder, onerror=note_unreadable):
        # os.walk does not enter linked folders; those that lead outside are counted.
        links = [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        images = [Path(parent, name) for name in files if Path(name).suffix.lower() in SUFFIXES]
        for path in links + images:
            if not Path(os.path.realpath(path)).is_relative_to(root):
                skipped[OUTSIDE] += 1
            elif path not in links:
                found.append(path)
    return _sorted_below(folder, found), skipped


def _sorted_below(folder: Path, paths: list[Path]) -> list[Path]:
    """Sort by the bytes of the relative path, whatever order the disk lists them in."""
    return sorted(paths, key=lambda path: os.fsencode(path.relative_to(folder).as_posix()))
