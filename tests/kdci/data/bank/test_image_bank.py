from __future__ import annotations

import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdci.data.bank import mapped_images
from kdci.data.bank.image_bank import ImageBank, to_bytes
from kdci.data.bank.mapped_images import open_npy, save_npy
from kdci.errors import IntegrityError, NumericError, StorageError

SHAPE = (3, 4, 5)
ROW = 60


def pictures(num: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num, *SHAPE), generator=generator, dtype=torch.uint8)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_npy(pictures(7), tmp_path / "images.npy")
    return tmp_path / "images.npy"


def test_npy_round_trip_is_mapped_and_read_only(base: Path) -> None:
    images = open_npy(base)
    assert isinstance(images, np.memmap)
    assert np.array_equal(images, pictures(7).numpy())
    assert np.array_equal(np.load(base), images)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_damaged_or_foreign_npy_files(tmp_path: Path, base: Path) -> None:
    bad = tmp_path / "bad.npy"
    whole = base.read_bytes()
    for content in (b"", b"\x93NUMPY", whole[:-1], whole[:100], b"\x80\x04K\x01.", b"PK\x03\x04"):
        bad.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"bad\.npy"):
            open_npy(bad)
    for array in (np.zeros((2, 3)), np.zeros((1, 2, 3, 4)), np.array([{}], dtype=object)):
        np.save(bad, array, allow_pickle=True)
        with pytest.raises(IntegrityError):
            open_npy(bad)
    with pytest.raises(StorageError):
        open_npy(tmp_path / "absent.npy")
    with pytest.raises(ValueError, match="uint8"):
        save_npy(torch.zeros(1, 1, 2, 2), bad)


def test_bytes_are_rounded_not_floored() -> None:
    images = torch.tensor([0.0, 0.49 / 255, 0.51 / 255, 254.6 / 255, 1.0, 1.3, -0.2])
    assert to_bytes(images).tolist() == [0, 0, 1, 255, 255, 255, 0]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(every.float() / 255), every)


def test_rows_of_base_and_tail_equal_one_array(tmp_path: Path, base: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE, base=base)
    assert len(bank) == 7
    bank.append(pictures(4, 1).float() / 255)
    bank.append(pictures(2, 2).float() / 255)
    everything = torch.cat([pictures(7), pictures(4, 1), pictures(2, 2)])
    assert len(bank) == 13
    order = torch.tensor([12, 0, 6, 7, 11, 7, 3])
    assert torch.equal(bank.rows(order), everything[order])
    assert bank.rows(torch.empty(0, dtype=torch.int64)).shape == (0, *SHAPE)
    again = ImageBank(tmp_path / "tail.bin", shape=SHAPE, base=base)
    assert torch.equal(again.rows(torch.arange(13)), everything)
    assert np.array_equal(open_npy(base), pictures(7).numpy())


def test_chunks_are_the_rows_a_part_at_a_time(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_images, "CHUNK_BYTES", 4 * ROW + 1)
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE, base=base)
    bank.append(pictures(4, 1).float() / 255)
    order = torch.tensor([10, 0, 6, 7, 9, 7, 3, 8, 8])
    parts = list(bank.chunks(order))
    assert [len(part) for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat(parts), bank.rows(order))
    (nothing,) = bank.chunks(order[:0])
    assert nothing.shape == (0, *SHAPE)
    with pytest.raises(IndexError):
        list(bank.chunks(torch.tensor([0, 11])))


def test_a_bank_without_base_starts_empty(tmp_path: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE)
    assert len(bank) == 0
    assert (tmp_path / "tail.bin").read_bytes() == b""
    bank.append(pictures(3).float().div(255).to(memory_format=torch.channels_last))
    assert (tmp_path / "tail.bin").read_bytes() == pictures(3).numpy().tobytes()


@pytest.mark.parametrize("index", [-1, 3])
def test_rows_outside(index: int, tmp_path: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE)
    bank.append(pictures(3).float() / 255)
    with pytest.raises(IndexError):
        bank.rows(torch.tensor([0, index]))


def test_truncate_to_what_a_checkpoint_recorded(tmp_path: Path, base: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE, base=base)
    bank.append(pictures(4, 1).float() / 255)
    bank.truncate(9)
    assert len(bank) == 9
    assert (tmp_path / "tail.bin").stat().st_size == 2 * ROW
    assert torch.equal(
        bank.rows(torch.tensor([8, 0])), torch.stack([pictures(4, 1)[1], pictures(7)[0]])
    )
    bank.append(pictures(1, 5).float() / 255)
    assert torch.equal(bank.rows(torch.tensor([9])), pictures(1, 5))
    with pytest.raises(IntegrityError, match="has 10 whole rows, not 11"):
        bank.truncate(11)
    bank.truncate(7)
    assert len(bank) == 7
    with pytest.raises(ValueError, match="base"):
        bank.truncate(6)


def test_a_row_torn_by_a_crash_is_not_counted_and_must_be_cut(tmp_path: Path) -> None:
    tail = tmp_path / "tail.bin"
    tail.write_bytes(pictures(2).numpy().tobytes() + b"torn")
    bank = ImageBank(tail, shape=SHAPE)
    assert len(bank) == 2
    with pytest.raises(IntegrityError, match="whole"):
        bank.append(pictures(1).float() / 255)
    with pytest.raises(IntegrityError):
        bank.truncate(3)
    bank.truncate(2)
    bank.append(pictures(1, 3).float() / 255)
    assert torch.equal(bank.rows(torch.arange(3)), torch.cat([pictures(2), pictures(1, 3)]))


def test_what_may_not_be_appended(tmp_path: Path, base: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE)
    for images in (pictures(1), torch.zeros(1, 3, 5, 4), torch.zeros(SHAPE)):
        with pytest.raises(ValueError, match="must be float"):
            bank.append(images)
    with pytest.raises(NumericError):
        bank.append(torch.full((1, *SHAPE), float("nan")))
    assert len(bank) == 0
    with pytest.raises(IntegrityError, match="images are"):
        ImageBank(tmp_path / "tail2.bin", shape=(3, 5, 4), base=base)
    with pytest.raises(StorageError):
        ImageBank(tmp_path / "absent" / "tail.bin", shape=SHAPE)


def test_a_full_disk_leaves_the_bank_as_it_was(tmp_path: Path) -> None:
    bank = ImageBank(tmp_path / "tail.bin", shape=SHAPE)
    bank.append(pictures(3).float() / 255)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5 * ROW + 10, limits[1]))
        with pytest.raises(StorageError, match=r"tail\.bin.*needs 600 bytes"):
            bank.append(pictures(10, 1).float() / 255)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "tail.bin").read_bytes() == pictures(3).numpy().tobytes()
    bank.append(pictures(1, 2).float() / 255)
    assert torch.equal(bank.rows(torch.arange(4)), torch.cat([pictures(3), pictures(1, 2)]))
