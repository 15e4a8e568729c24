"""A pool into which somebody put whatever an image folder can hold."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdci.data.open_world.candidates import PoolPart
from kdci.errors import UserError
from tests.kdci.data.open_world._whole_pool import load_whole
from tests.project_code import ROOT

NUM_GOOD = 400
LONG_NAME = "\N{LATIN SMALL LETTER E WITH ACUTE}\N{SNOWMAN}" * 20 + "x" * 150 + ".png"
EXPECTED = {
    "damaged": 2,
    "not an image": 6,
    "other kind of file": 1,
    "symlink out of the folder": 2,
    "too large": 2,
    "unreadable": 1,
}
SCRIPT = """
import json, re, sys, time
from pathlib import Path
from kdci.data.open_world.candidates import PoolPart
from tests.kdci.data.open_world._whole_pool import load_whole

def peak():  # of this program alone: getrusage begins with what its parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def load(path, **settings):
    parts = [PoolPart("folder", Path(path))]
    return load_whole(parts, image_size=32, channels=3, seed=0, **settings)

load(sys.argv[1])
before, start = peak(), time.monotonic()
pool = load(sys.argv[2])
rise = peak() - before
print(json.dumps({"rise_kb": rise, "seconds": time.monotonic() - start, "skipped": pool.skipped,
                  "num_images": len(pool.images)}))
"""


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A black-and-white PNG of side x side pixels that are really in it, a few kilobytes."""
    packer = zlib.compressobj(9)
    rows = b"\0" * (side // 8 + 1)
    body = b"".join(packer.compress(rows) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def files() -> dict[str, bytes]:
    """Return every file by name: what can be used, and what can not."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    picture = Image.fromarray(noise)
    png, jpeg = encoded(picture, "PNG"), encoded(picture, "JPEG")
    frames = [Image.fromarray(noise // n).convert("P") for n in (1, 2)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    deep = encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG")
    good = {f"good{number:03}.png": png for number in range(NUM_GOOD)}
    unusual = {
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "deep.png": deep,
        "palette.png": encoded(picture.convert("P"), "PNG"),
        LONG_NAME: png,
    }
    bad = {
        "empty.png": b"",
        "text.jpg": b"all about cats",
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "bomb100.png": bomb(10_000),
        "bomb400.png": bomb(20_000),
        "animated.png": animated,
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "animated.gif": animated,
    }
    return good | unusual | bad


def build(folder: Path, shuffle: int) -> Path:
    """Write the pool in one of many orders."""
    folder.mkdir()
    order = list(files().items())
    random.Random(shuffle).shuffle(order)
    for name, content in order:
        (folder / name).write_bytes(content)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "passwd.png").symlink_to("/etc/passwd")
    (folder / "etc").symlink_to("/etc")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.slow
def test_it_is_read_without_harm(tmp_path: Path, encode_image: Callable[..., bytes]) -> None:
    """What is bad is skipped and counted; memory and time stay small."""
    warm = tmp_path / "warm"
    warm.mkdir()
    (warm / "a.png").write_bytes(encode_image(np.zeros((200, 200, 3), np.uint8)))
    pool = build(tmp_path / "pool", 0)
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(warm), str(pool)],
        capture_output=True,
        check=True,
        timeout=120,
        cwd=ROOT,
    )
    found = json.loads(out.stdout)
    assert found["skipped"] == EXPECTED
    assert found["num_images"] == NUM_GOOD + 4
    assert found["rise_kb"] < 200 * 1024
    assert found["seconds"] < 10


def test_the_pool_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    pools = [
        load_whole(
            [PoolPart("folder", build(tmp_path / f"pool{shuffle}", shuffle))],
            image_size=8,
            channels=3,
            seed=0,
        )
        for shuffle in (1, 2)
    ]
    assert pools[0].skipped == pools[1].skipped == EXPECTED
    assert bytes(pools[0].images.numpy()) == bytes(pools[1].images.numpy())


def test_too_many_bad_ones_refuse_it_with_their_reasons(tmp_path: Path) -> None:
    part = PoolPart("folder", build(tmp_path / "pool", 3))
    bad = EXPECTED["damaged"] + EXPECTED["not an image"] + EXPECTED["too large"] + 1
    share = bad / (bad + NUM_GOOD + 4)
    settings = {"image_size": 8, "channels": 3, "seed": 0}
    load_whole([part], max_bad_fraction=share, **settings)
    with pytest.raises(UserError, match=f"{bad} of {bad + NUM_GOOD + 4} images") as caught:
        load_whole([part], max_bad_fraction=share - 1e-6, **settings)
    assert caught.value.exit_code == 2
    for reason in ("2 damaged", "6 not an image", "2 too large", "1 unreadable"):
        assert reason in str(caught.value)
