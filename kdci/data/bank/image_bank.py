"""The image bank: a pool's images in one memory-mapped file, growing while distilling."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdci.data.bank.mapped_images import (
    Images,
    chunk_rows,
    open_npy,
    release,
    split_rows,
    take_rows,
)
from kdci.errors import IntegrityError, NumericError, StorageError


def to_bytes(images: Tensor) -> Tensor:
    """Round images from [0, 1] to bytes, on the CPU; values outside are clamped.

    Args:
        images: Float, any shape.

    Returns:
        uint8 of the same shape. Rounded: the floor would darken the pool by half a level.
    """
    return images.detach().float().clamp(0, 1).mul_(255).round_().to("cpu", torch.uint8)


class ImageBank:
    """Rows of uint8 images: an optional read-only base, then an append-only tail.

    Args:
        tail: Raw uint8 file of the rows after the base; created if missing.
        shape: (C, H, W) of every image.
        base: A .npy file with the first rows, which is never written to.

    Raises:
        IntegrityError: If the base is damaged or holds images of another shape.
        StorageError: If a file can not be opened.
    """

    def __init__(self, tail: Path, *, shape: tuple[int, int, int], base: Path | None = None):
        self.shape = shape
        self._row_bytes = int(np.prod(shape))
        self._tail_path = tail
        self._base: Images = np.empty((0, *shape), dtype=np.uint8)
        if base is not None:
            self._base = open_npy(base)
            if self._base.shape[1:] != shape:
                raise IntegrityError(str(base), f"images are {self._base.shape[1:]}, not {shape}")
        try:
            tail.touch()
        except OSError as error:
            raise StorageError(str(tail), error.strerror or "can not be written") from error
        self._tail: Images = self._map_tail()

    def __len__(self) -> int:
        return len(self._base) + len(self._tail)

    def _map_tail(self) -> Images:
        """Map the whole rows of the tail; a row torn by a crash is not counted."""
        num_rows = self._tail_path.stat().st_size // self._row_bytes
        if num_rows == 0:
            return np.empty((0, *self.shape), dtype=np.uint8)
        return np.memmap(self._tail_path, np.uint8, "r", shape=(num_rows, *self.shape))

    def append(self, images: Tensor) -> None:
        """Add images as the last rows; they are on disk when this returns.

        Args:
            images: (B, C, H, W) float in [0, 1]; rounded to bytes.

        Raises:
            ValueError: If the shape or dtype is another one.
            NumericError: If a value is not finite.
            IntegrityError: If the tail ends in a torn row; ``truncate`` cuts it.
            StorageError: If the disk is full; the bank is as it was before.
        """
        if not images.is_floating_point() or tuple(images.shape[1:]) != self.shape:
            raise ValueError(
                f"images must be float (B, {', '.join(map(str, self.shape))}), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        if not bool(images.isfinite().all()):
            raise NumericError(str(self._tail_path), "images to append are not finite")
        size = self._tail_path.stat().st_size
        if size != len(self._tail) * self._row_bytes:
            raise IntegrityError(
                str(self._tail_path), f"{size} bytes are no whole number of rows or changed"
            )
        try:
            with self._tail_path.open("ab") as file:
                for part in split_rows(images):
                    file.write(to_bytes(part).contiguous().numpy().data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self._tail_path, size)
            raise StorageError(
                str(self._tail_path),
                error.strerror or "write failed",
                f"needs {images.numel()} bytes",
            ) from error
        self._tail = self._map_tail()

    def truncate(self, num_rows: int) -> None:
        """Cut the tail so that the bank has this many rows, as a checkpoint recorded it.

        Raises:
            ValueError: If the base alone has more rows.
            IntegrityError: If the bank has fewer whole rows than that.
        """
        if num_rows < len(self._base):
            raise ValueError(f"{num_rows} rows are fewer than the base's {len(self._base)}")
        if num_rows > len(self):
            raise IntegrityError(
                str(self._tail_path), f"the bank has {len(self)} whole rows, not {num_rows}"
            )
        # Unmapped first: touching a mapped page beyond the file's end kills the process.
        self._tail = np.empty((0, *self.shape), dtype=np.uint8)
        os.truncate(self._tail_path, (num_rows - len(self._base)) * self._row_bytes)
        self._tail = self._map_tail()

    def rows(self, indices: Tensor) -> Tensor:
        """Copy rows out of the bank.

        Args:
            indices: (B,) int64, each in [0, len).

        Returns:
            (B, C, H, W) uint8 on the CPU.

        Raises:
            IndexError: If an index is outside.
        """
        wanted = indices.cpu().numpy()
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} of a bank of {len(self)}")
        in_base = wanted < len(self._base)
        found = np.empty((len(wanted), *self.shape), dtype=np.uint8)
        found[in_base] = take_rows(self._base, wanted[in_base])
        found[~in_base] = take_rows(self._tail, wanted[~in_base] - len(self._base))
        return torch.from_numpy(found)

    def chunks(self, indices: Tensor) -> Iterator[Tensor]:
        """Copy rows out of the bank a part at a time; no more of it is held.

        Args:
            indices: (M,) int64, each in [0, len).

        Yields:
            (B, C, H, W) uint8 on the CPU, in the order of ``indices``.

        Raises:
            IndexError: If an index is outside.
        """
        for part in torch.split(indices, chunk_rows(self.shape)):
            yield self.rows(part)
            release(self._base)
            release(self._tail)
