"""How many images there are, where they lie and where they do not."""

from __future__ import annotations

from pathlib import Path

from kdci.data.open_world.candidates import PoolPart
from pipelines.checking.estimating.counting import Counted, _image_sizes, count_part


def test_of_a_missing_open_world_there_are_as_many_as_are_kept(tmp_path: Path) -> None:
    missing = PoolPart("folder", tmp_path / "none")
    assert count_part(missing, 7) == Counted(7, is_found=False)


def test_links_in_a_circle_are_counted_once(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"1234")
    (folder / "again").symlink_to(tmp_path / "train")
    assert list(_image_sizes(str(tmp_path / "train"))) == [4]
