"""Decode image bytes that may be hostile or damaged.

Only four formats are admitted, the size is read from the header and bounded before any
pixel is decoded, and truncated data is an error rather than a grey rest.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from kdci.config.catalog import DatasetSpec
from kdci.errors import IntegrityError, UserError

Item = TypeVar("Item")
Pixels = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 25_000_000
# Of an image of the user's own dataset: of ImageNet's photographs some are large.
MAX_LABELLED_PIXELS = 80_000_000
MAX_BYTES = 64 * 2**20
MAX_THREADS = 4
# Of a larger image each copy takes up to 100 MB, and the allocator keeps one for each thread.
MAX_PIXELS_IN_THREADS = 4_000_000
# Sizes are bounded below, by less than Pillow warns of. Once and for all: the list of filters is
# the whole process's, and images are decoded beside other threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
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


def decode_image(
    data: bytes,
    *,
    channels: int,
    square: int | None = None,
    share: float = 1.0,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Decode one image.

    Args:
        data: The encoded file.
        channels: 1 for grey (ITU-R 601 luma), 3 for RGB.
        square: If given, the centred square is resized to this side in pixels, bilinear with
            antialiasing.
        share: Of the shorter side that the square has. 224 / 256 with a side of 224 is
            torchvision's ``Resize(256)`` and ``CenterCrop(224)``.
        max_pixels: An image with more of them is refused before it is decoded.

    Returns:
        (C, H, W) uint8.

    Raises:
        UndecodableError: If it is no JPEG, PNG, WebP or BMP, is damaged, or has more than
            ``max_pixels`` pixels or ``MAX_BYTES`` bytes.
    """
    if len(data) > MAX_BYTES:
        raise UndecodableError("too large")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UndecodableError("too large")
            return _pixels(_squared(image, channels, square, share))
    except UndecodableError:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError("too large") from error
    except UnidentifiedImageError as error:
        raise UndecodableError("not an image") from error
    except Exception as error:
        # Format parsers raise whatever a damaged header trips: OSError, SyntaxError,
        # struct.error, zlib.error, IndexError and more.
        raise UndecodableError("damaged") from error


def read_file(path: str | Path) -> bytes:
    """Return the content of a file that may be an image.

    Raises:
        UndecodableError: If it is no regular file, too large, or can not be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UndecodableError("not an image")
            if status.st_size > MAX_BYTES:
                raise UndecodableError("too large")
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UndecodableError("unreadable") from error


def _at_once(path: str, flags: int) -> int:
    """Open even a pipe without waiting for somebody to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _eight_bit(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255 and leave a white image.
        wide = np.asarray(image)
        wide = wide if wide.dtype.itemsize == 2 else wide.clip(0, 65535)
        upper = np.empty(wide.shape, dtype=np.uint8)
        np.right_shift(wide, 8, out=upper, casting="unsafe")
        image = Image.fromarray(upper)
    mode = "L" if channels == 1 else "RGB"
    # Converted into its own mode it would be copied.
    return image if image.mode == mode else image.convert(mode)


def _squared(image: Image.Image, channels: int, side: int | None, share: float) -> Image.Image:
    if side is None:
        return _eight_bit(image, channels)
    if share < 1:
        # The square lies inside, and pixels from beyond its edge belong to the antialiasing.
        box = _inner_square(image.size, side, round(side / share))
        whole = _eight_bit(image, channels)
        return whole.resize((side, side), Image.Resampling.BILINEAR, box=box)
    extent = min(image.size)
    left, top = (image.width - extent) // 2, (image.height - extent) // 2
    # Cropped first: resize(box=...) would mix in pixels from beyond the square's edge.
    # And before it is converted, with the rest let go: of large images each copy is 100 MB.
    centre = image
    if image.width != image.height:
        centre = image.crop((left, top, left + extent, top + extent))
        image.close()
    return _eight_bit(centre, channels).resize((side, side), Image.Resampling.BILINEAR)


def _inner_square(
    size: tuple[int, int], side: int, resized: int
) -> tuple[float, float, float, float]:
    """Return what a centred crop covers of an image whose shorter side is resized before.

    With torchvision's two roundings, of the longer side and of the crop's place.
    """
    scaled = [resized if length == min(size) else resized * length // min(size) for length in size]
    starts = [round((length - side) / 2) for length in scaled]
    steps = [length / to for length, to in zip(size, scaled, strict=True)]
    (left, top), (across, down) = starts, steps
    return left * across, top * down, (left + side) * across, (top + side) * down


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def decode_all(
    items: Sequence[Item],
    read: Callable[[Item], bytes],
    *,
    channels: int,
    square: int | None = None,
    share: float = 1.0,
    max_pixels: int = MAX_PIXELS,
    threads: int = MAX_THREADS,
) -> list[Pixels | UndecodableError]:
    """Read and decode many images, in threads where the first is large enough to gain by it.

    Images of more than ``MAX_PIXELS_IN_THREADS`` are decoded one at a time, for they take much
    memory.

    Args:
        items: What ``read`` takes, one per image.
        read: Returns the encoded bytes, or raises ``UndecodableError``.
        channels: 1 or 3, see ``decode_image``.
        square: See ``decode_image``.
        share: See ``decode_image``.
        max_pixels: See ``decode_image``.
        threads: At most so many; never more than there are cores.

    Returns:
        For each item, in order, its (C, H, W) uint8 pixels or why there are none.
    """

    def attempt(item: Item, most: int = max_pixels) -> Pixels | UndecodableError:
        try:
            return decode_image(
                read(item), channels=channels, square=square, share=share, max_pixels=most
            )
        except UndecodableError as error:
            return error

    def attempt_small(item: Item) -> Pixels | UndecodableError:
        return attempt(item, min(max_pixels, MAX_PIXELS_IN_THREADS))

    if not items or not _is_large(items[0], read):
        return [attempt(item) for item in items]
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        decoded = list(pool.map(attempt_small, items))
    for place, pixels in enumerate(decoded):
        if isinstance(pixels, UndecodableError) and pixels.reason == "too large":
            decoded[place] = attempt(items[place])
    return decoded


def decode_labelled(
    items: Sequence[Item],
    read: Callable[[Item], bytes],
    spec: DatasetSpec,
    *,
    told: Callable[[int], tuple[str, str]],
    fix: str,
    threads: int = MAX_THREADS,
) -> Iterator[Pixels]:
    """Decode images of a dataset, every one of which has to be whole.

    Args:
        items: See ``decode_all``.
        read: See ``decode_all``.
        spec: Says size and channels. Where it has a ``square_share`` images are cut square and
            resized; else all have that size.
        told: From the place of an item to the subject of an error about it, and what is put before
            its words.
        fix: What to do about a damaged one.
        threads: See ``decode_all``.

    Yields:
        (C, H, W) of each item, in order.

    Raises:
        IntegrityError: If an image is damaged.
        UserError: If one has another size.
    """
    share, side = spec.square_share, spec.image_size
    decoded = decode_all(
        items,
        read,
        channels=spec.channels,
        square=None if share is None else side,
        share=1.0 if share is None else share,
        max_pixels=MAX_LABELLED_PIXELS,
        threads=threads,
    )
    for place, pixels in enumerate(decoded):
        subject, before = told(place)
        if isinstance(pixels, UndecodableError):
            raise IntegrityError(subject, f"{before}the image is {pixels.reason}", fix)
        height, width = pixels.shape[1:]
        if (height, width) != (side, side):
            what = f"{before}the image is {width}x{height} pixels"
            raise UserError(subject, what, f"{spec.name} has {side}x{side}")
        yield pixels


def _is_large(item: Item, read: Callable[[Item], bytes]) -> bool:
    try:
        return len(read(item)) >= THREADS_FROM_BYTES
    except UndecodableError:
        return False
