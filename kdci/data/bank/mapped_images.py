"""uint8 images in files that may be larger than memory: written and read a part at a time.

A file is mapped, so what was read of it lies in the system's page cache. Pages count as the
process's own memory for as long as they are mapped; a pass over a file lets them go after each
part, and where a file is larger than the page cache can hold, random rows are asked for all at
once before the first of them is waited for.
"""

# M = images of a file, B = images of a batch

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdci.errors import IntegrityError, StorageError
from kdci.store.artifacts import storage_errors

Images = npt.NDArray[np.uint8]

CHUNK_BYTES = 2**20
"""What is read or written at a time in a pass over a file."""


def split_rows(rows: Tensor) -> tuple[Tensor, ...]:
    """Split images, or what has four axes like them, into parts of about ``CHUNK_BYTES`` values.

    Args:
        rows: (M, C, H, W).

    Returns:
        Views (B, C, H, W), B at least 1 where M is; a single one without rows where M is 0.
    """
    return torch.split(rows, chunk_rows(rows.shape[1:]))


def chunk_rows(shape: Iterable[int]) -> int:
    """Return how many images of a shape (C, H, W) a part has."""
    return max(1, CHUNK_BYTES // max(1, math.prod(shape)))


def save_npy(images: Tensor, path: Path) -> None:
    """Write images as a .npy file.

    Args:
        images: (M, C, H, W) uint8.
        path: The file to write, in a folder that exists.

    Raises:
        ValueError: If the images are not uint8 with four axes.
        StorageError: If the disk is full or not writable.
    """
    save_npy_chunks(split_rows(images), path, num_images=len(images))


def save_npy_chunks(chunks: Iterable[Tensor], path: Path, *, num_images: int) -> None:
    """Write images that need not fit into memory as a .npy file; it is on disk on return.

    Args:
        chunks: Parts of the images in order, uint8 (B, C, H, W); at least one.
        path: The file to write, in a folder that exists.
        num_images: M, of all chunks together.

    Raises:
        ValueError: If a chunk is not uint8 with four axes or is of another shape than the first,
            or there are not ``num_images`` in all.
        StorageError: If the disk is full or not writable.
    """
    written, shape = 0, None
    with storage_errors(path), path.open("wb") as file:
        for chunk in chunks:
            if chunk.dtype != torch.uint8 or chunk.dim() != 4:
                raise ValueError(f"images must be uint8 (M, C, H, W), got {chunk.dtype}")
            if shape is None:
                shape = tuple(chunk.shape[1:])
                _write_header(file, (num_images, *shape))
            if tuple(chunk.shape[1:]) != shape:
                raise ValueError(f"images are {tuple(chunk.shape[1:])}, those before {shape}")
            written += len(chunk)
            with storage_errors(path, needed=num_images * math.prod(shape)):
                file.write(chunk.cpu().contiguous().numpy().data)
        if shape is None or written != num_images:
            raise ValueError(f"{written} images were given, not {num_images}")
        file.flush()
        os.fsync(file.fileno())


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def open_npy(path: Path) -> Images:
    """Map a .npy file of images into memory, read-only.

    Returns:
        (M, C, H, W) uint8.

    Raises:
        IntegrityError: If the file is damaged or holds anything else.
        StorageError: If it can not be read.
    """
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise StorageError(str(path), error.strerror or "can not be read") from error
    except (ValueError, EOFError, SyntaxError) as error:
        raise IntegrityError(str(path), f"not a whole .npy file of images: {error}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise IntegrityError(
            str(path), f"holds {images.dtype} {images.shape}, not uint8 (M, C, H, W)"
        )
    return images


def take_rows(images: Images, rows: npt.NDArray[np.int64]) -> Images:
    """Copy rows out of mapped images.

    Args:
        images: (M, C, H, W), a map as it was opened or an array.
        rows: (B,), each in [0, M).

    Returns:
        (B, C, H, W) in memory.
    """
    if images.nbytes > _memory_bytes() // 2:
        read_ahead(images, rows)
    return images[rows]


def read_ahead(images: Images, rows: npt.NDArray[np.int64]) -> None:
    """Ask the system for mapped rows without waiting for them; see ``take_rows``.

    One after the other, each row that is not in the page cache would be waited for, and its
    neighbours be read with it. Of rows that are there this only costs time.
    """
    mapped = _map_of(images)
    if mapped is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    # Only whole pages can be asked for; the map begins before the images where there is a header.
    row_bytes = images.nbytes // len(images)
    firsts = rows * row_bytes + (len(mapped) - images.nbytes)
    starts = firsts // mmap.PAGESIZE * mmap.PAGESIZE
    lengths = firsts + row_bytes - starts
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        mapped.madvise(mmap.MADV_WILLNEED, start, length)


def release(images: Images) -> None:
    """Let go of the pages of mapped images; they stay in the page cache and can be read again."""
    mapped = _map_of(images)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _map_of(images: Images) -> mmap.mmap | None:
    return images.base if isinstance(images.base, mmap.mmap) else None


def _memory_bytes() -> int:
    """Return the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class MappedImages:
    """The images of a .npy file as an ``ImageSet``: copied out where they are indexed.

    Args:
        path: Of the file.

    Raises:
        IntegrityError: If the file is damaged or holds anything else.
        StorageError: If it can not be read.
    """

    dtype = torch.uint8

    def __init__(self, path: Path) -> None:
        self._images = open_npy(path)
        self.shape = torch.Size(self._images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any, /) -> Tensor:
        found = np.array(self._images[index.numpy() if isinstance(index, Tensor) else index])
        release(self._images)
        return torch.from_numpy(found)

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield rows, int64 (M,), in their order a part at a time, uint8 (B, C, H, W)."""
        for part in torch.split(rows, chunk_rows(self.shape[1:])):
            yield self[part]
