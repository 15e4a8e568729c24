"""Decode image bytes that may be hostile or damaged.

Only four formats are admitted, the size is read from the header and bounded before any
pixel is decoded, and truncated data is an error rather than a grey rest.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

Item = TypeVar("Item")
Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 25_000_000
MAX_BYTES = 64 * 2**20
# Each thread may hold MAX_PIXELS of RGB, so more threads would cost memory for little speed.
MAX_THREADS = 4
# Below this many encoded bytes (about 256x256 JPEG) Pillow holds the GIL most of the time and
# threads only get in each other's way: 32x32 images decode 20 % faster without them.
THREADS_FROM_BYTES = 16_384


class UndecodableError(Exception):
    """An image that is skipped or refused.

    Args:
        reason: One of ``not an image``, ``damaged``, ``too large``, ``unreadable``,
            ``missing``: the key under which skipped images are counted.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def decode_image(data: bytes, *, channels: int, square: int | None = None) -> Pixels:
    """Decode one image.

    Args:
        data: The encoded file.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB.
        square: If given, the largest centred square is resized to this side in pixels,
            bilinear with antialiasing.

    Returns:
        (C, H, W) uint8.

    Raises:
        UndecodableError: If it is no JPEG, PNG, WebP or BMP, is damaged, or has more than
            ``MAX_PIXELS`` pixels or ``MAX_BYTES`` bytes.
    """
    if len(data) > MAX_BYTES:
        raise UndecodableError("too large")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableError("too large")
            return _pixels(_squared(_eight_bit(image, channels), square))
    except UndecodableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UndecodableError("too large") from error
    except UnidentifiedImageError as error:
        raise UndecodableError("not an image") from error
    except Exception as error:
        # Format parsers raise whatever a damaged header trips: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError and more.
        raise UndecodableError("damaged") from error


def _eight_bit(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 and leave a white image.
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def _squared(image: Image.Image, side: int | None) -> Image.Image:
    if side is None:
        return image
    extent = min(image.size)
    left, top = (image.width - extent) // 2, (image.height - extent) // 2
    # Cropped first: resize(box=...) would mix in pixels from beyond the square's edge.
    centre = image.crop((left, top, left + extent, top + extent))
    return centre.resize((side, side), Image.Resampling.BILINEAR)


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_all(
    items: Sequence[Item],
    read: Callable[[Item], bytes],
    *,
    channels: int,
    square: int | None = None,
) -> list[Pixels | UndecodableError]:
    """Read and decode many images, in threads where the first is large enough to gain by it.

    Args:
        items: What ``read`` takes, one per image.
        read: Returns the encoded bytes, or raises ``UndecodableError``.
        channels: 1 or 3, see ``decode_image``.
        square: See ``decode_image``.

    Returns:
        For each item, in order, its (C, H, W) uint8 pixels or why there are none.
    """

    def attempt(item: Item) -> Pixels | UndecodableError:
        try:
            return decode_image(read(item), channels=channels, square=square)
        except UndecodableError as error:
            return error

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if not items or not _is_large(items[0], read):
            return [attempt(item) for item in items]
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(attempt, items))


def _is_large(item: Item, read: Callable[[Item], bytes]) -> bool:
    try:
        return len(read(item)) >= THREADS_FROM_BYTES
    except UndecodableError:
        return False
