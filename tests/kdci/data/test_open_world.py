from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kdci.data.open_world import OpenWorldPool, Source, check_open_world, load_open_world
from kdci.errors import IntegrityError, UserError

Encode = Callable[..., bytes]
Make = Callable[..., Path]


def load(source: Source, path: Path | None, num: int = 0, channels: int = 1) -> OpenWorldPool:
    return load_open_world(
        source, path=path, num_images=num, image_size=8, channels=channels, seed=0
    )


def grey(level: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def levels(pool: OpenWorldPool) -> list[int]:
    assert pool.images.shape[1:] == (1, 8, 8)
    return [int(value) for value in pool.images[:, 0, 4, 4]]


def test_photographs_are_seeded_crops() -> None:
    pool = load("photographs", None, 50, channels=3)
    assert pool.images.shape == (50, 3, 8, 8)
    assert pool.skipped == {}
    assert torch.equal(pool.images, load("photographs", None, 50, channels=3).images)


def test_photographs_take_no_path_and_need_a_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bundled"):
        check_open_world("photographs", path=tmp_path)
    with pytest.raises(UserError, match="above 0"):
        load("photographs", None, 0)


def test_parquet_takes_the_first_in_sorted_order(
    tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    blobs = [encode_image(grey(level)) for level in range(6)]
    make_parquet(tmp_path / "z" / "a.parquet", blobs[4:], image="image")
    make_parquet(tmp_path / "b.parquet", blobs[2:4], image="image")
    make_parquet(tmp_path / "B.parquet", blobs[:2], image="pixels")
    check_open_world("parquet", path=tmp_path)
    assert levels(load("parquet", tmp_path)) == [0, 1, 2, 3, 4, 5]
    assert levels(load("parquet", tmp_path, 3)) == [0, 1, 2]
    assert levels(load("parquet", tmp_path, 99)) == [0, 1, 2, 3, 4, 5]


def test_bad_rows_are_replaced_by_later_ones_and_counted(
    tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    blobs: list[bytes | None] = [encode_image(grey(level)) for level in range(100)]
    blobs[5], blobs[6], blobs[70] = b"text", None, b"beyond"
    make_parquet(tmp_path / "a.parquet", blobs, image="image")
    pool = load("parquet", tmp_path, 60)
    assert levels(pool) == [level for level in range(62) if level not in (5, 6)]
    assert pool.skipped == {"missing": 1, "not an image": 1}
    assert len(load("parquet", tmp_path, 0).images) == 97


def test_a_damaged_parquet_file_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(IntegrityError, match=r"a\.parquet"):
        check_open_world("parquet", path=tmp_path)


@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_absent_or_empty_folders(source: Source, tmp_path: Path) -> None:
    for path in (None, tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="no path|no such folder|no images"):
            check_open_world(source, path=path)
        with pytest.raises(UserError):
            load(source, path)


def test_folder_order_is_by_bytes_whatever_the_creation_order(
    tmp_path: Path, encode_image: Encode
) -> None:
    names = ["B.png", "a/x.jpg", "a.bmp", "b.WEBP", "é.jpeg"]
    expected = sorted(names, key=lambda name: name.encode())
    pools = []
    for run, order in enumerate((names, names[::-1])):
        folder = tmp_path / str(run)
        for name in order:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(name.split(".")[1], name.split(".")[1])
            file.write_bytes(encode_image(grey(40 * expected.index(name)), kind.upper()))
        (folder / "notes.txt").write_text("not a candidate")
        pools.append(load("folder", folder))
    assert np.abs(np.array(levels(pools[0])) - [0, 40, 80, 120, 160]).max() <= 2
    assert torch.equal(pools[0].images, pools[1].images)
    assert pools[0].skipped == {}
    assert len(load("folder", tmp_path / "0", 2).images) == 2


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path, encode_image: Encode) -> None:
    folder, outside = tmp_path / "pool", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.png").write_bytes(encode_image(grey(200)))
    (folder / "a.png").write_bytes(encode_image(grey(10)))
    (folder / "b.png").symlink_to("a.png")
    (folder / "c.png").symlink_to(outside / "secret.png")
    (folder / "d").symlink_to(outside)
    (folder / "sub" / "loop").symlink_to(folder)
    pool = load("folder", folder)
    assert levels(pool) == [10, 10]
    assert pool.skipped == {"symlink out of the folder": 2}


def test_hostile_files_are_skipped_by_reason(tmp_path: Path, encode_image: Encode) -> None:
    good = encode_image(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for index in range(100):
        (tmp_path / f"g{index:03}.png").write_bytes(good)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    (tmp_path / "c.png").write_bytes(good[: len(good) // 2])
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "e.png").symlink_to("e.png")
    pool = load("folder", tmp_path)
    assert len(pool.images) == 100
    assert pool.skipped == {"not an image": 3, "damaged": 1, "unreadable": 1}


@pytest.mark.parametrize(("bad", "fails"), [(5, False), (6, True)])
def test_more_than_five_percent_bad_is_a_user_error(
    bad: int, fails: bool, tmp_path: Path, encode_image: Encode
) -> None:
    for index in range(100):
        content = b"no" if index < bad else encode_image(grey(0))
        (tmp_path / f"{index:03}.png").write_bytes(content)
    if fails:
        with pytest.raises(UserError, match="6 of 100 images can not be used"):
            load("folder", tmp_path)
    else:
        assert len(load("folder", tmp_path).images) == 95


@pytest.mark.slow
def test_real_open_world_pool(real_data: Path) -> None:
    if not (real_data / "open-world").is_dir():
        pytest.skip(f"no open-world pool at {real_data}")
    pool = load_open_world(
        "parquet",
        path=real_data / "open-world",
        num_images=0,
        image_size=32,
        channels=3,
        seed=0,
    )
    assert pool.images.shape == (30_000, 3, 32, 32)
    assert pool.skipped == {}
