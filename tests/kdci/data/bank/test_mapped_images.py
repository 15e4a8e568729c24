from __future__ import annotations

import mmap
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdci.data.bank import mapped_images
from kdci.data.bank.mapped_images import (
    MappedImages,
    chunk_rows,
    open_npy,
    read_ahead,
    release,
    save_npy,
    save_npy_chunks,
    split_rows,
    take_rows,
)
from kdci.errors import StorageError
from tests.peak import peak_of

SHAPE = (3, 4, 5)


def pictures(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *SHAPE), generator=generator, dtype=torch.uint8)


def test_chunks_make_the_very_file_that_numpy_writes(tmp_path: Path) -> None:
    images = pictures(23)
    np.save(tmp_path / "numpy.npy", images.numpy())
    expected = (tmp_path / "numpy.npy").read_bytes()
    for parts in ([images], torch.split(images, 7), torch.split(images, 1)):
        save_npy_chunks(iter(parts), tmp_path / "chunks.npy", num_images=23)
        assert (tmp_path / "chunks.npy").read_bytes() == expected
    save_npy(images, tmp_path / "whole.npy")
    assert (tmp_path / "whole.npy").read_bytes() == expected
    channels_last = images.to(memory_format=torch.channels_last)
    save_npy(channels_last, tmp_path / "strided.npy")
    assert (tmp_path / "strided.npy").read_bytes() == expected
    save_npy(images[:0], tmp_path / "none.npy")
    assert np.load(tmp_path / "none.npy").shape == (0, *SHAPE)


def test_what_chunks_may_not_be(tmp_path: Path) -> None:
    file = tmp_path / "images.npy"
    for num_images in (22, 24):
        with pytest.raises(ValueError, match=f"23 images were given, not {num_images}"):
            save_npy_chunks([pictures(23)], file, num_images=num_images)
    with pytest.raises(ValueError, match="0 images"):
        save_npy_chunks([], file, num_images=1)
    with pytest.raises(ValueError, match=r"images are \(3, 5, 4\), those before \(3, 4, 5\)"):
        other = pictures(2).transpose(2, 3)
        save_npy_chunks([pictures(2), other], file, num_images=4)
    with pytest.raises(ValueError, match="uint8"):
        save_npy_chunks([pictures(2), pictures(2).float()], file, num_images=4)


def test_a_full_disk_is_told_with_what_all_images_need(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(StorageError, match=r"while writing 1,800,000 bytes"):
            parts = (pictures(1000) for _ in range(30))
            save_npy_chunks(parts, tmp_path / "images.npy", num_images=30_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_part_is_a_mebibyte_or_one_image() -> None:
    assert chunk_rows((3, 32, 32)) == 2**20 // 3072 == 341
    assert chunk_rows((3, 1024, 1024)) == 1
    images = torch.zeros(700, 3, 32, 32, dtype=torch.uint8)
    assert [len(part) for part in split_rows(images)] == [341, 341, 18]


def test_mapped_images_index_as_a_tensor_does(tmp_path: Path) -> None:
    images = pictures(9)
    save_npy(images, tmp_path / "images.npy")
    mapped = MappedImages(tmp_path / "images.npy")
    assert (mapped.shape, mapped.dtype, len(mapped)) == (images.shape, torch.uint8, 9)
    for index in (4, slice(2, 5), slice(7, 20), torch.tensor([8, 0, 0]), torch.tensor([]).long()):
        assert torch.equal(mapped[index], images[index])
    first = mapped[0:2]
    first.zero_()  # a copy: neither the file nor what is read later changes
    assert torch.equal(mapped[0:2], images[0:2])
    rows = torch.tensor([3, 1, 1, 8])
    assert torch.equal(torch.cat(list(mapped.chunks(rows))), images[rows])


class Advised(mmap.mmap):
    """A map that notes what it is asked for."""

    asked: list[tuple[int, int, int]]

    def madvise(self, option: int, start: int = 0, length: int = 0) -> None:
        self.asked.append((option, start, length))
        super().madvise(option, start, length or len(self))


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[tuple[np.ndarray, Advised, Tensor]]:
    """Images of 6,000 bytes each behind a header, their map, and what they are."""
    content = torch.arange(40 * 6000).remainder(251).to(torch.uint8).view(40, 3, 40, 50)
    save_npy(content, tmp_path / "images.npy")
    with (tmp_path / "images.npy").open("rb") as file:
        mapped = Advised(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.asked = []
    images = np.ndarray((40, 3, 40, 50), np.uint8, mapped, offset=128)
    assert images.base is mapped
    yield images, mapped, content


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no such advice")
def test_rows_are_asked_for_by_whole_pages_that_hold_them(noted) -> None:
    images, mapped, _ = noted
    read_ahead(images, np.array([7, 0, 39]))
    for row, (option, start, length) in zip((7, 0, 39), mapped.asked, strict=True):
        assert option == mmap.MADV_WILLNEED and start % mmap.PAGESIZE == 0
        first = 128 + 6000 * row
        assert start <= first < start + mmap.PAGESIZE
        assert start + length == first + 6000


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the system takes no such advice")
def test_only_what_the_page_cache_may_not_hold_is_asked_for(noted, monkeypatch) -> None:
    images, mapped, content = noted
    rows = np.array([3, 3, 20])
    for memory, asked in ((2 * images.nbytes, 0), (2 * images.nbytes - 2, 3)):
        monkeypatch.setattr(mapped_images, "_memory_bytes", lambda memory=memory: memory)
        assert np.array_equal(take_rows(images, rows), content.numpy()[rows])
        assert len(mapped.asked) == asked


@pytest.mark.slow
def test_a_pass_lets_go_of_what_it_has_read(tmp_path: Path) -> None:
    """Else the mapped pages of 64 MiB would count as the process's memory at the end."""
    part = torch.full((1000, 1, 64, 64), 5, dtype=torch.uint8)
    save_npy_chunks([part] * 16, tmp_path / "images.npy", num_images=16_000)
    mapped = MappedImages(tmp_path / "images.npy")
    few = peak_of(lambda: _pass_over(mapped, 1000))
    many = peak_of(lambda: _pass_over(mapped, 16_000))
    assert many - few < 16 * 2**20
    images = open_npy(tmp_path / "images.npy")
    whole = peak_of(lambda: images.max())
    assert whole - many > 32 * 2**20, "and so it would be seen"
    release(images)


def _pass_over(mapped: MappedImages, num_rows: int) -> None:
    for first in range(0, num_rows, 200):
        assert int(mapped[first : first + 200].max()) == 5
