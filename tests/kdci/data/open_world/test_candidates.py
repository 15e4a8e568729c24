from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdci.data.open_world.candidates import PoolPart, Source, list_part
from kdci.errors import IntegrityError, UserError
from tests.kdci.data.open_world._whole_pool import WholePool, load_whole

Encode = Callable[..., bytes]
Make = Callable[..., Path]


def load(
    source: Source, path: Path | None, num: int = 0, channels: int = 1, bad: float = 0.05
) -> WholePool:
    return load_parts([PoolPart(source, path, num)], channels=channels, max_bad_fraction=bad)


def load_parts(parts: list[PoolPart], channels: int = 1, **settings: Any) -> WholePool:
    return load_whole(parts, image_size=8, channels=channels, seed=0, **settings)


def grey(level: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def levels(pool: WholePool) -> list[int]:
    assert pool.images.shape[1:] == (1, 8, 8)
    return [int(value) for value in pool.images[:, 0, 4, 4]]


def test_photographs_are_seeded_crops() -> None:
    pool = load("photographs", None, 50, channels=3)
    assert pool.images.shape == (50, 3, 8, 8)
    assert pool.skipped == {}
    assert torch.equal(pool.images, load("photographs", None, 50, channels=3).images)


def test_parquet_takes_the_first_in_sorted_order(
    tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    blobs = [encode_image(grey(level)) for level in range(6)]
    make_parquet(tmp_path / "z" / "a.parquet", blobs[4:], image="image")
    make_parquet(tmp_path / "b.parquet", blobs[2:4], image="image")
    make_parquet(tmp_path / "B.parquet", blobs[:2], image="pixels")
    list_part(PoolPart("parquet", tmp_path), image_size=8)
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
        list_part(PoolPart("parquet", tmp_path), image_size=8)


@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_absent_or_empty_folders(source: Source, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="no such folder|no images"):
            list_part(PoolPart(source, path), image_size=8)
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
    assert pools[0].skipped == {"other kind of file": 1}
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
    pool = load("folder", folder, bad=0.5)
    assert levels(pool) == [10, 10]
    assert pool.skipped == {"symlink out of the folder": 2}
    with pytest.raises(UserError, match=r"2 of 4 images can not be used \(2 symlink out"):
        load("folder", folder, bad=0.49)


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


@pytest.fixture
def three(tmp_path: Path, encode_image: Encode, make_parquet: Make) -> list[PoolPart]:
    """A folder with the levels 0 to 9, Parquet with 100 to 104, photographs."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for level in range(10):
        (folder / f"{level}.png").write_bytes(encode_image(grey(level)))
    blobs = [encode_image(grey(level)) for level in range(100, 105)]
    make_parquet(tmp_path / "parquet" / "a.parquet", blobs)
    return [
        PoolPart("folder", folder, 3),
        PoolPart("parquet", tmp_path / "parquet"),
        PoolPart("photographs", None, 4),
    ]


def test_parts_are_mixed_in_listed_order(three: list[PoolPart]) -> None:
    pool = load_parts(three)
    assert levels(pool)[:8] == [0, 1, 2, 100, 101, 102, 103, 104]
    assert len(pool.images) == 12 and pool.skipped == {}
    assert levels(load_parts(three[1::-1])) == [100, 101, 102, 103, 104, 0, 1, 2]
    assert [list_part(part).wanted for part in three] == [3, 5, 4]


@pytest.mark.parametrize("bound", [1, 3, 4, 8, 11, 12, 99])
def test_the_sum_has_an_upper_bound(bound: int, three: list[PoolPart]) -> None:
    whole, bounded = load_parts(three), load_parts(three, num_images=bound)
    assert torch.equal(bounded.images, whole.images[:bound])


def test_one_part_is_what_it_is_alone_and_photographs_differ_by_part(three: list[PoolPart]) -> None:
    crops = three[2]
    both = load_parts([crops, crops]).images
    first, second = both[:4], both[4:]
    assert torch.equal(first, load_parts([crops]).images)
    assert not torch.equal(first, second)


def test_what_is_skipped_is_told_by_part_and_replaced_within_it(
    three: list[PoolPart], encode_image: Encode, make_parquet: Make
) -> None:
    folder, parquet = three[0].path, three[1].path
    assert folder is not None and parquet is not None
    (folder / "1.png").write_bytes(b"no")
    (folder / "notes.txt").write_text("no candidate")
    blobs = [encode_image(grey(level)) for level in range(100, 103)]
    make_parquet(parquet / "a.parquet", [None, *blobs])
    pool = load_parts(three[:2], max_bad_fraction=0.3)
    assert levels(pool) == [0, 2, 3, 100, 101, 102]
    assert pool.skipped == {
        "sources.0: not an image": 1,
        "sources.0: other kind of file": 1,
        "sources.1: missing": 1,
    }


def test_a_bad_part_is_not_hidden_by_good_ones(three: list[PoolPart], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"bad: 1 of 1 images can not be used \(1 not an image\)"):
        load_parts([*three, PoolPart("folder", bad)], max_bad_fraction=0.5)


def test_a_folder_that_may_not_be_read_is_counted(
    tmp_path: Path, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    for level in range(20):
        (tmp_path / f"{level:02}.png").write_bytes(encode_image(grey(level)))
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    pool = load("folder", tmp_path)
    assert len(pool.images) == 20
    assert pool.skipped == {"unreadable folder": 1}


def test_photographs_are_too_small_for_some_images() -> None:
    part = PoolPart("photographs", None, 3)
    list_part(part, image_size=427)
    for look in (
        lambda: list_part(part, image_size=448),
        lambda: load_whole([part], image_size=448, channels=3, seed=0),
    ):
        with pytest.raises(UserError, match="427 pixels high, images are 448"):
            look()


def test_a_part_without_rows_does_not_end_the_pool(
    tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    make_parquet(tmp_path / "none" / "a.parquet", [])
    make_parquet(tmp_path / "some" / "a.parquet", [encode_image(grey(7))])
    empty, good = PoolPart("parquet", tmp_path / "none"), PoolPart("parquet", tmp_path / "some")
    assert levels(load_parts([good])) == [7]
    for parts in ([empty, good], [good, empty], [empty]):
        with pytest.raises(UserError, match="none: its Parquet files have no rows"):
            load_parts(parts)
    with pytest.raises(UserError, match="no rows"):
        list_part(empty, image_size=8)


def test_parquet_that_is_not_all_there_is_refused(
    tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    """A cache of links whose blob was not fetched, and a shard that was not."""
    blob = [encode_image(grey(3))]
    make_parquet(tmp_path / "blobs" / "one", blob)
    snapshot = tmp_path / "snapshot"
    for split in ("train", "test"):
        (snapshot / split).mkdir(parents=True)
        (snapshot / split / "x-00000-of-00001.parquet").symlink_to(tmp_path / "blobs" / "one")
    assert levels(load("parquet", snapshot)) == [3, 3]
    missing = snapshot / "y.parquet"
    missing.symlink_to(tmp_path / "blobs" / "two")
    with pytest.raises(UserError, match=r"y\.parquet: is a link that leads nowhere"):
        load("parquet", snapshot)
    missing.unlink()
    make_parquet(snapshot / "train" / "z-00001-of-00003.parquet", blob)
    with pytest.raises(UserError, match="one of 3 shards, 1 found"):
        list_part(PoolPart("parquet", snapshot), image_size=8)


def test_a_pool_beyond_the_memory_is_refused(three: list[PoolPart]) -> None:
    with pytest.raises(UserError, match="GiB of memory"):
        load_whole(three[:2], image_size=10**7, channels=3, seed=0)


@pytest.mark.slow
def test_real_open_world_pool(real_data: Path) -> None:
    if not (real_data / "open-world").is_dir():
        pytest.skip(f"no open-world pool at {real_data}")
    part = PoolPart("parquet", real_data / "open-world")
    pool = load_whole([part], image_size=32, channels=3, seed=0)
    assert pool.images.shape == (30_000, 3, 32, 32)
    assert pool.skipped == {}
