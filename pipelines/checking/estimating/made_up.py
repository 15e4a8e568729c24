"""Images that stand in for those that are not there: photographs of a dataset's usual size."""

from __future__ import annotations

import io
import time
from pathlib import Path

from PIL import Image

from kdci.config.catalog import DatasetSpec
from kdci.data.files.bundled import bundled_file
from kdci.data.files.decoding import decode_all
from kdci.data.files.parquet import read_blob
from kdci.data.open_world.photographs import PHOTOGRAPHS

_ENLARGED = 2
"""Side of a made-up photograph over that of the square it is cut to."""
_AT_ONCE = 32


def photograph(spec: DatasetSpec) -> tuple[bytes, str]:
    """Return an encoded image as a dataset's usually are, and its format."""
    whole = spec.square_share is not None
    side = spec.image_size * _ENLARGED if whole else spec.image_size
    file = bundled_file(f"datasets/images/{PHOTOGRAPHS[0]}.jpg")
    image = Image.open(file).convert("L" if spec.channels == 1 else "RGB").resize((side, side))
    out, kind = io.BytesIO(), "jpeg" if whole else "png"
    image.save(out, format=kind.upper(), quality=90)
    return out.getvalue(), kind


def write_photographs(folder: Path, number: int, spec: DatasetSpec) -> Path:
    """See to it that a folder has so many of them, and return it."""
    data, kind = photograph(spec)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(list(folder.iterdir())), number):
        (folder / f"{index:07d}.{kind}").write_bytes(data)
    return folder


def decoding_seconds(spec: DatasetSpec, *, seconds: float) -> float:
    """Return what such an image takes to be decoded.

    Args:
        spec: Says size and channels.
        seconds: Decoding stops after about this long.
    """
    items = [photograph(spec)[0]] * _AT_ONCE
    square = None if spec.square_share is None else spec.image_size
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < seconds:
        decode_all(items, read_blob, channels=spec.channels, square=square)
        done += len(items)
    return (time.perf_counter() - began) / done
