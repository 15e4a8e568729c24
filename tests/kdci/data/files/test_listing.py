"""The walk through a folder gives the order that sorting all paths would."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from kdci.data.files.listing import OTHER, UNREADABLE, walk_images


@pytest.mark.parametrize("seed", range(5))
def test_walks_in_the_byte_order_of_whole_paths(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    letters = ["a", "b", "B", ".", "-", "0", "é", "a.png", "\N{SNOWMAN}"]
    for _ in range(120):
        names = ["".join(rng.choices(letters, k=rng.randint(1, 2))) for _ in range(3)]
        folder = tmp_path.joinpath(*("x" + name for name in names[: rng.randint(0, 3)]))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"x{names[-1]}{rng.choice(['.png', '.JPG', '.txt'])}").touch()
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue  # a file and a folder of one name
    every = [path for path in tmp_path.rglob("*") if path.is_file()]
    images = [path for path in every if path.suffix.lower() in (".png", ".jpg")]
    expected = sorted(os.fsencode(path) for path in images)
    skipped: Counter[str] = Counter()
    assert [os.fsencode(path) for path in walk_images(tmp_path, skipped)] == expected
    assert +skipped == Counter({OTHER: len(every) - len(images)})
    assert len(images) > 40


def test_a_deep_folder_is_walked(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.png").touch()
    assert list(walk_images(tmp_path, Counter())) == [str(deep / "a.png")]


def test_a_folder_that_is_gone_is_counted(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    assert list(walk_images(tmp_path / "gone", skipped)) == []
    assert skipped == {UNREADABLE: 1}
