from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from kdci.data.decoding import THREADS_FROM_BYTES, UndecodableError, decode_all, decode_image

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
