"""The stream of a pool: resumed anywhere, read again by position, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world import pool as open_world_pool
from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.pool import OpenWorldPool, PoolBatch, PoolProgress
from kdci.data.open_world.scores import OpenWorldScores
from kdci.data.open_world.scoring_engine import Decoder
from kdci.errors import IntegrityError, UserError
from kdci.models import PixelModel, Prediction

Encode = Callable[..., bytes]
Make = Callable[..., Path]


@dataclass
class Counting:
    """Workers that note what they are given to decode, and do it when it is asked for."""

    num_decoded_ahead: int = 3
    num_scored_ahead: int = 1
    items: list[Any] = field(default_factory=list)

    def decode(self, decoder: Decoder, items: Sequence[Any]) -> Callable[[], Any]:
        self.items += items
        return lambda: decoder(items)

    def score(self, images: Tensor) -> Callable[[], Tensor]:
        raise AssertionError("nothing is scored here")


def grey(level: int) -> np.ndarray:
    return np.full((9, 11, 3), level, np.uint8)


@pytest.fixture
def parts(tmp_path: Path, encode_image: Encode, make_parquet: Make) -> list[PoolPart]:
    """Parquet with 30 levels of which two are bad, 25 files of which three are, 20 crops."""
    blobs: list[bytes | None] = [encode_image(grey(level)) for level in range(30)]
    blobs[0], blobs[17] = None, b"no"
    make_parquet(tmp_path / "p" / "a.parquet", blobs[:11])
    make_parquet(tmp_path / "p" / "b.parquet", blobs[11:])
    for number in range(25):
        file = tmp_path / "f" / str(number % 3) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no" if number in (3, 23, 24) else encode_image(grey(100 + number)))
    return [
        PoolPart("parquet", tmp_path / "p"),
        PoolPart("folder", tmp_path / "f"),
        PoolPart("photographs", None, 20),
    ]


def open_pool(parts: list[PoolPart], **settings: Any) -> OpenWorldPool:
    small: dict[str, Any] = {"image_size": 8, "channels": 1, "seed": 3, "max_bad_fraction": 0.5}
    return OpenWorldPool(parts, **small | settings)


@pytest.mark.parametrize("size", [1, 7, 10, 99])
@pytest.mark.parametrize("num_images", [0, 28, 29, 40, 50, 51, 69])
def test_goes_on_from_any_batch_as_if_it_had_not_stopped(
    parts: list[PoolPart], size: int, num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_world_pool, "MAX_ITEMS_PER_CHUNK", 4)
    pool = open_pool(parts, num_images=num_images)
    whole = list(pool.batches(size, Counting()))
    assert sum(len(batch.images) for batch in whole) == (num_images or 70)
    for number, batch in enumerate(whole[:-1], 1):
        state = json.loads(json.dumps(batch.progress.state_dict()))
        rest = list(
            open_pool(parts, num_images=num_images).batches(size, Counting(), PoolProgress(**state))
        )
        assert_same(rest, whole[number:])


def assert_same(found: list[PoolBatch], expected: list[PoolBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert (one.positions, one.progress) == (other.positions, other.progress)


def test_what_was_taken_is_not_decoded_again(parts: list[PoolPart]) -> None:
    pool, size = open_pool(parts[:2]), 13
    whole = list(pool.batches(size, all_of_it := Counting()))
    assert len(all_of_it.items) == 55
    for batch in whole[:-1]:
        again = Counting()
        list(pool.batches(size, again, batch.progress))
        assert again.items == all_of_it.items[batch.positions[-1] + 1 :]


def test_is_read_by_position(parts: list[PoolPart]) -> None:
    pool = open_pool(parts)
    whole = list(pool.batches(100, Counting()))[0]
    chosen = [0, 5, 16, 27, 28, 40, 49, 50, 69]
    positions = [whole.positions[row] for row in chosen]
    workers = Counting()
    again = torch.cat(list(pool.read(positions, workers)))
    assert torch.equal(again, whole.images[chosen])
    assert len(workers.items) == 7  # photographs are not decoded


def test_no_more_is_read_than_is_wanted(
    parts: list[PoolPart], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks that are underway count as if all of them were good."""
    monkeypatch.setattr(open_world_pool, "MAX_ITEMS_PER_CHUNK", 3)
    workers = Counting()
    batches = list(open_pool([parts[0]], num_images=18).batches(5, workers))
    assert sum(len(batch.images) for batch in batches) == 18
    assert len(workers.items) == 20
    assert batches[-1].progress.skipped == {"missing": 1, "not an image": 1}


def test_a_folder_that_changes_while_it_is_read_is_told(
    parts: list[PoolPart], encode_image: Encode
) -> None:
    pool = open_pool(parts)
    batches = list(pool.batches(100, Counting()))
    chosen = batches[0].positions[::2]
    folder = parts[1].path
    assert folder is not None
    added = folder / "0" / "00.png"
    added.write_bytes(encode_image(grey(1)))
    with pytest.raises(UserError, match="came or went"):
        list(pool.read(chosen, Counting()))
    assert open_pool(parts).fingerprint != pool.fingerprint
    added.unlink()
    assert open_pool(parts).fingerprint == pool.fingerprint
    (folder / "1" / "4.png").write_bytes(b"no image any more")
    with pytest.raises(IntegrityError, match="an image that was scored is not an image now"):
        list(pool.read(batches[0].positions, Counting()))


def test_the_same_files_elsewhere_are_the_same_pool(parts: list[PoolPart], tmp_path: Path) -> None:
    before = open_pool(parts).fingerprint
    (tmp_path / "f").rename(tmp_path / "moved")
    moved = PoolPart("folder", tmp_path / "moved")
    assert open_pool([parts[0], moved, parts[2]]).fingerprint == before
    assert open_pool([moved, parts[0], parts[2]]).fingerprint != before


def test_a_hopeless_source_is_refused_before_it_is_read_whole(
    tmp_path: Path, encode_image: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_world_pool, "MAX_ITEMS_PER_CHUNK", 5)
    for number in range(100):
        content = b"no" if number < 21 else encode_image(grey(1))
        (tmp_path / f"{number:03}.png").write_bytes(content)
    part = [PoolPart("folder", tmp_path)]
    workers = Counting(num_decoded_ahead=1)
    assert sum(len(b.images) for b in open_pool(part).batches(9, workers)) == 79
    with pytest.raises(UserError, match=r"21 of 25 images can not be used \(21 not an image\)"):
        list(open_pool(part, max_bad_fraction=0.2).batches(9, refused := Counting()))
    assert len(refused.items) <= 25 + 5 * refused.num_decoded_ahead
    # Of those few that are asked for, they are too many sooner.
    few = open_pool([PoolPart("folder", tmp_path, 10)], max_bad_fraction=0.4)
    with pytest.raises(UserError, match="10 of 10 images can not be used"):
        list(few.batches(9, Counting()))


class Coarse(torch.nn.Module):
    """Logits that many images share."""

    def forward(self, images: Tensor) -> Prediction:
        level = (images.flatten(1).mean(dim=1, keepdim=True) * 9).round()
        return Prediction(torch.cat([level, -level], dim=1), level)


@pytest.mark.parametrize("keep", ["lowest", "highest"])
@pytest.mark.parametrize(("num_selected", "batch"), [(1, 3), (20, 8), (33, 64), (70, 16)])
def test_the_choice_is_that_of_a_whole_sort(
    parts: list[PoolPart], tmp_path: Path, keep: Any, num_selected: int, batch: int
) -> None:
    teacher = PixelModel(Coarse(), mean=(0.0,), std=(1.0,)).eval()
    pool = open_pool(parts)
    images = torch.cat([b.images for b in pool.batches(batch, Counting())])
    values = teacher(images.float() / 255).logits[:, 0]
    assert len(values.unique()) < 12
    order = values.argsort(descending=keep == "highest", stable=True)[:num_selected]
    bank = ImageBank(tmp_path / "bank.bin", shape=(1, 8, 8))
    scores = OpenWorldScores(
        "some",
        name="value",
        score=lambda logits: logits[:, 0],
        keep=keep,
        num_selected=num_selected,
        batch_size=batch,
        skipped=(skipped := {}),
    )
    *_, last = scores.choose(lambda: pool, teacher, bank)
    assert torch.equal(bank.rows(torch.arange(len(bank))), images[order.sort().values])
    assert last["selected_value"] == float(values[order.sort().values].mean())
    assert skipped == {
        "sources.0: missing": 1,
        "sources.0: not an image": 1,
        "sources.1: not an image": 3,
    }


MEMORY = """
import re, sys
from pathlib import Path
from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.pool import OpenWorldPool
from kdci.data.open_world.scoring_engine import local_engine

pool = OpenWorldPool(
    [PoolPart(source, Path(path)) for source, path in zip(sys.argv[1::2], sys.argv[2::2])],
    image_size=64, channels=3, seed=0,
)
with local_engine(None, None) as workers:
    positions = [p for batch in pool.batches(256, workers) for p in batch.positions]
    assert sum(len(chunk) for chunk in pool.read(positions, workers)) == len(positions)
print(len(positions), re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["parquet", "folder"])
def test_memory_does_not_grow_with_the_pool(
    source: str, tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    """The larger pool would take 150 MB, and be read twice."""
    found = {}
    for name, number in (("small", 1200), ("large", 12_000)):
        blobs = [encode_image(grey(row % 250)) for row in range(number)]
        if source == "parquet":
            make_parquet(tmp_path / name / "a.parquet", blobs)
        for row, blob in enumerate(blobs if source == "folder" else ()):
            file = tmp_path / name / f"{row // 500}" / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(blob)
        out = subprocess.run(
            [sys.executable, "-c", MEMORY, source, str(tmp_path / name)],
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        )
        count, found[name] = (int(word) for word in out.stdout.split())
        assert count == number
    assert found["large"] - found["small"] < 40 * 1024
