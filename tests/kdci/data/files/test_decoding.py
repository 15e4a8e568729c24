from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as F_pil

from kdci.data.files import decoding
from kdci.data.files.decoding import (
    MAX_BYTES,
    THREADS_FROM_BYTES,
    UndecodableError,
    decode_all,
    decode_image,
    read_file,
)
from tests.project_code import ROOT

Encode = Callable[..., bytes]


def huge_png(side: int) -> bytes:
    """A small file that claims side x side pixels, and really holds them, compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 2)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


def test_lossless_pixels_come_back_channels_first(
    rgb: Callable[..., np.ndarray], encode_image: Encode
) -> None:
    image = rgb(1, 7)[0]
    for kind in ("PNG", "BMP"):
        pixels = decode_image(encode_image(image, kind), channels=3)
        assert np.array_equal(pixels, image.transpose(2, 0, 1))


def test_grey_is_itu_601_luma(rgb: Callable[..., np.ndarray], encode_image: Encode) -> None:
    image = rgb(1, 7)[0]
    grey = decode_image(encode_image(image), channels=1)
    assert grey.shape == (1, 7, 7)
    assert np.abs(grey[0] - image @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_sixteen_bit_grey_keeps_its_upper_byte(encode_image: Encode) -> None:
    levels = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    assert decode_image(encode_image(levels), channels=1).tolist() == [[[0, 1, 128, 255]]]


def test_the_centred_square_is_resized_with_antialiasing(encode_image: Encode) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    got = decode_image(encode_image(image), channels=3, square=16)
    centre = torch.from_numpy(image[:, 10:50].copy()).permute(2, 0, 1)[None].double()
    expected = F.interpolate(centre, size=16, mode="bilinear", antialias=True)[0]
    assert np.abs(got - expected.numpy()).max() <= 1.01


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "EPS"])
def test_other_formats_are_not_even_tried(kind: str, encode_image: Encode) -> None:
    with pytest.raises(UndecodableError, match="not an image"):
        decode_image(encode_image(np.zeros((4, 4, 3), np.uint8), kind), channels=3)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(UndecodableError, match="not an image|damaged"):
        decode_image(data, channels=3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_truncated_image_is_damaged_not_half_grey(kind: str, encode_image: Encode) -> None:
    data = encode_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), kind)
    with pytest.raises(UndecodableError, match="damaged|not an image"):
        decode_image(data[: len(data) * 2 // 3], channels=3)


@pytest.mark.parametrize("side", [5_008, 10_000, 20_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = huge_png(side)
    assert Image.open(io.BytesIO(huge_png(4_992))).size == (4_992, 4_992)

    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "convert", fail)
    (refused,) = decode_all([bomb], lambda data: data, channels=1)
    assert isinstance(refused, UndecodableError)
    assert refused.reason == "too large"


def test_many_are_decoded_in_order_and_failures_stay_in_place(
    rgb: Callable[..., np.ndarray], encode_image: Encode
) -> None:
    for side in (8, 90):
        blobs = [encode_image(image) for image in rgb(20, side)]
        assert (len(blobs[0]) >= THREADS_FROM_BYTES) == (side == 90)
        blobs[7] = b"no"
        decoded = decode_all(blobs, lambda data: data, channels=3)
        for row, (pixels, image) in enumerate(zip(decoded, rgb(20, side), strict=True)):
            if row == 7:
                assert isinstance(pixels, UndecodableError)
            else:
                assert np.array_equal(np.asarray(pixels), image.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (256, 256), (300, 257), (90, 61), (640, 333)]
)
def test_a_share_of_224_in_256_is_torchvisions_evaluation_transform(
    width: int, height: int, encode_image: Encode
) -> None:
    """At most a level apart, in few places: Pillow keeps the box in single precision."""
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, rows * columns % 256], axis=2)
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    for pixels in (smooth.astype(np.uint8), noise.astype(np.uint8)):
        resized = F_pil.resize(Image.fromarray(pixels), 256)
        expected = np.asarray(F_pil.center_crop(resized, [224])).transpose(2, 0, 1)
        got = decode_image(encode_image(pixels), channels=3, square=224, share=224 / 256)
        assert got.shape == (3, 224, 224)
        assert np.abs(got.astype(int) - expected).max() <= 1
        assert (got != expected).mean() < 0.01


@pytest.mark.parametrize(("width", "height"), [(255, 300), (120, 250), (64, 64)])
def test_an_enlarged_image_is_a_level_off_in_more_places(
    width: int, height: int, encode_image: Encode
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    resized = F_pil.center_crop(F_pil.resize(Image.fromarray(pixels), 256), [224])
    got = decode_image(encode_image(pixels), channels=3, square=224, share=224 / 256)
    off = np.abs(got.astype(int) - np.asarray(resized).transpose(2, 0, 1))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.3


def test_large_images_are_decoded_outside_of_the_threads(
    encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their places, and what is too large for all stays refused."""
    threads: dict[int, str] = {}
    squared = decoding._squared

    def noted(image: Image.Image, *settings: Any) -> Image.Image:
        threads[image.width] = threading.current_thread().name
        return squared(image, *settings)

    monkeypatch.setattr(decoding, "_squared", noted)
    rng = np.random.default_rng(0)
    sides = [90, 2001, 91, 92]
    images = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in sides]
    blobs = [encode_image(image) for image in images]
    most = 90 * 2001  # of pixels: more than all but one
    for max_pixels, refused in ((2001**2, set()), (most, {1})):
        decoded = decode_all(blobs, lambda data: data, channels=3, max_pixels=max_pixels)
        for row, (pixels, image) in enumerate(zip(decoded, images, strict=True)):
            if row in refused:
                assert isinstance(pixels, UndecodableError)
            else:
                assert np.array_equal(np.asarray(pixels), image.transpose(2, 0, 1))
    own = threading.current_thread().name
    assert [threads[side] == own for side in sides] == [False, True, False, False]


MEMORY = """
import re, sys
from pathlib import Path
from kdci.data.files.decoding import decode_all, read_file

def peak():  # of this program alone: getrusage begins with what its parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small, large = [Path(name) for name in sys.argv[1:]]
decode_all([small] * 4, read_file, channels=3, square=32)
before = peak()
decoded = decode_all([large] * 4, read_file, channels=3, square=32)
assert all(pixels.shape == (3, 32, 32) for pixels in decoded)
print((peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_the_largest_images_take_what_is_stated(mode: str, tmp_path: Path) -> None:
    """Beside the file itself, of which a few are in memory at a time."""
    rng = np.random.default_rng(0)
    if mode == "I;16":
        pixels = rng.integers(0, 2**16, (5000, 4999), np.uint16)
    else:
        pixels = rng.integers(0, 256, (5000, 4999, len(mode)), np.uint8) // 64 * 64
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.fromarray(pixels).save(large, compress_level=1)
    Image.fromarray(pixels[:300, :300]).save(small)
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    out = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    assert int(out.stdout) < 230 + 5 * large.stat().st_size // 2**20


def test_files_that_are_none_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", MAX_BYTES + 1)
    reasons = {
        "pipe": "not an image",
        "loop": "unreadable",
        "huge": "too large",
        "no": "unreadable",
    }
    for name, reason in reasons.items():
        with pytest.raises(UndecodableError, match=reason):
            read_file(tmp_path / f"{name}.png")
