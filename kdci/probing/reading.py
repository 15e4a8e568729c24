"""How long it takes to decode images: a pool's first ones, or made-up ones of a usual size."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from kdci.config.catalog import DatasetSpec
from kdci.data.files.bundled import bundled_file
from kdci.data.files.decoding import decode_all, read_file
from kdci.data.files.listing import parquet_files, walk_images
from kdci.data.files.parquet import iter_blobs, read_blob
from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.photographs import PHOTOGRAPHS, photograph_crops
from kdci.data.open_world.pool import within_bytes
from kdci.errors import KdciError

MOST_IMAGES = 64
_ENLARGED = 2
"""Side of a made-up photograph over that of the square it is cut to."""


def seconds_per_image(part: PoolPart, spec: DatasetSpec, *, seconds: float) -> tuple[float, bool]:
    """Return what an image of an open world takes to read, and whether these were its own.

    Args:
        part: Where they lie; of files that are not there, made-up ones stand in.
        spec: Says size and channels.
        seconds: Decoding stops after about this long.
    """
    if part.source == "photographs":
        return _cropping(spec), True
    try:
        items, read = _first_items(part)
        if items:
            return _decoding(items, read, spec, spec.image_size, seconds), True
    except (KdciError, OSError):
        pass  # told by the look at the data itself
    return made_up_seconds(spec, seconds=seconds), False


def _cropping(spec: DatasetSpec) -> float:
    """Return what one more crop of the bundled photographs takes."""
    took = []
    for num_images in (MOST_IMAGES // 2, 2 * MOST_IMAGES):
        began = time.perf_counter()
        photograph_crops(
            num_images=num_images, image_size=spec.image_size, channels=spec.channels, seed=0
        )
        took.append(time.perf_counter() - began)
    return max(0.0, took[1] - took[0]) / (2 * MOST_IMAGES - MOST_IMAGES // 2)


def made_up_seconds(spec: DatasetSpec, *, seconds: float) -> float:
    """Return what an image takes to read of the size that a dataset's usually have."""
    whole = spec.square_share is not None
    side = spec.image_size * _ENLARGED if whole else spec.image_size
    file = bundled_file(f"datasets/images/{PHOTOGRAPHS[0]}.jpg")
    photograph = Image.open(file).convert("L" if spec.channels == 1 else "RGB")
    out = io.BytesIO()
    photograph.resize((side, side)).save(out, format="JPEG" if whole else "PNG", quality=90)
    items = [out.getvalue()] * MOST_IMAGES
    return _decoding(items, read_blob, spec, spec.image_size if whole else None, seconds)


def _first_items(part: PoolPart) -> tuple[list[Any], Callable[[Any], bytes]]:
    if part.path is None or not part.path.is_dir():
        return [], read_blob
    if part.source == "parquet":
        blobs = islice(iter_blobs(parquet_files(part.path)), MOST_IMAGES)
        return list(within_bytes(blobs)), read_blob
    return list(islice(walk_images(part.path, Counter()), MOST_IMAGES)), read_file


def _decoding(
    items: list[Any],
    read: Callable[[Any], bytes],
    spec: DatasetSpec,
    square: int | None,
    seconds: float,
) -> float:
    """Return the seconds an image; a few of the images are a first look that is not counted."""
    done, began = 0, time.perf_counter()
    for chunk in _chunks(items):
        decode_all(chunk, read, channels=spec.channels, square=square)
        done += len(chunk)
        if time.perf_counter() - began > seconds:
            break
    return (time.perf_counter() - began) / done


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    starts = np.arange(0, len(items), MOST_IMAGES // 4)
    return (items[start : start + MOST_IMAGES // 4] for start in starts)
