from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdci.config.catalog import DATASETS
from kdci.data.files import image_files
from kdci.data.files.image_files import ImageFiles, images_of_files
from kdci.errors import IntegrityError, UserError

FIXED = replace(DATASETS["cifar10"], image_size=6)
PHOTOS = replace(DATASETS["imagenet"], image_size=6, square_share=6 / 8)


@pytest.fixture
def files(
    tmp_path: Path, rgb: Callable[..., np.ndarray], encode_image: Callable[..., bytes]
) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path, pixels in zip(paths, rgb(7, 6), strict=True):
        path.write_bytes(encode_image(pixels))
    return [str(path) for path in paths]


def tensor(rgb: Callable[..., np.ndarray]) -> Tensor:
    return torch.from_numpy(rgb(7, 6).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        slice(None),
        slice(2, 5),
        slice(5, 99),
        slice(7, 9),
        slice(None, None, 3),
        torch.tensor([6, 0, 0, 3]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(7) % 2 == 0,
    ],
    ids=str,
)
def test_indexing_is_a_tensors(
    index: int | slice | Tensor, files: list[str], rgb: Callable[..., np.ndarray]
) -> None:
    lazy, whole = ImageFiles(files, FIXED), tensor(rgb)
    assert lazy.shape == whole.shape and lazy.dtype == whole.dtype and len(lazy) == len(whole)
    assert torch.equal(lazy[index], whole[index])


def test_rows_beyond_the_end_are_no_rows(files: list[str]) -> None:
    lazy = ImageFiles(files, FIXED)
    for index in (7, -8, torch.tensor([0, 7])):
        with pytest.raises(IndexError):
            lazy[index]


def test_many_small_chunks_are_one_tensor(
    files: list[str], rgb: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "IMAGES_PER_CHUNK", 3)
    assert torch.equal(ImageFiles(files, FIXED)[:], tensor(rgb))


def test_only_photographs_that_would_take_much_memory_stay_in_their_files(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 7 * 3 * 6 * 6
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", num_bytes)
    kept = images_of_files(files, PHOTOS)
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", num_bytes - 1)
    lazy = images_of_files(files, PHOTOS)
    assert isinstance(kept, Tensor) and isinstance(lazy, ImageFiles)
    assert torch.equal(kept, lazy[:])
    assert isinstance(images_of_files(files, FIXED), Tensor)


def test_imagenets_splits_stay_in_their_files() -> None:
    for num_images in (1_281_167, 50_000):
        assert isinstance(images_of_files(["x"] * num_images, DATASETS["imagenet"]), ImageFiles)


def test_a_damaged_image_is_named_when_it_is_decoded(files: list[str]) -> None:
    Path(files[4]).write_bytes(Path(files[4]).read_bytes()[:60])
    Path(files[5]).unlink()
    lazy = ImageFiles(files, PHOTOS)
    assert len(lazy[:4]) == 4
    with pytest.raises(IntegrityError, match=r"4\.png: the image is (damaged|not an image)"):
        lazy[2:5]
    with pytest.raises(IntegrityError, match=r"5\.png: the image is unreadable"):
        lazy[5]


def test_another_size_is_a_user_error_where_there_is_but_one(
    files: list[str], rgb: Callable[..., np.ndarray], encode_image: Callable[..., bytes]
) -> None:
    Path(files[1]).write_bytes(encode_image(rgb(1, 28)[0]))
    with pytest.raises(UserError, match=r"1\.png: the image is 28x28 pixels \(cifar10 has 6x6"):
        images_of_files(files, FIXED)
    assert images_of_files(files, PHOTOS).shape == (7, 3, 6, 6)
