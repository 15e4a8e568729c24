"""Images in files, decoded when they are asked for: ImageNet as bytes would take 193 GB."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.labelled import ImageSet
from kdci.data.files.decoding import Pixels, decode_labelled, read_file

IN_MEMORY_BYTES = 2 * 2**30
"""Photographs that would take more are decoded when they are asked for, every time."""
MAX_THREADS = 16
IMAGES_PER_CHUNK = 512
_SHOWN = "every image must be whole: replace it, or take it out"


def images_of_files(files: Sequence[str], spec: DatasetSpec) -> ImageSet:
    """Return images in the order of their files.

    Args:
        files: Paths of JPEG, PNG, WebP or BMP files.
        spec: Says size and channels. Where it has a ``square_share`` files may have any size,
            and many of them are decoded when they are asked for; else all have that size.

    Returns:
        (N, C, H, W) uint8: a tensor, or ``ImageFiles`` where photographs would take more than
        ``IN_MEMORY_BYTES``.

    Raises:
        IntegrityError: If an image that is decoded now is damaged; names its file.
        UserError: If one has another size.
    """
    found = ImageFiles(files, spec)
    if spec.square_share is not None and found.shape.numel() > IN_MEMORY_BYTES:
        return found
    return found[:]


class ImageFiles:
    """Images in files that look like one (N, C, H, W) uint8 tensor to who indexes them.

    Decoding runs in threads. The same file gives the same bytes every time, so nothing but the
    clock tells it from a tensor.

    Args:
        files: Paths; strings, for there may be a million of them.
        spec: See ``images_of_files``.
    """

    dtype = torch.uint8

    def __init__(self, files: Sequence[str], spec: DatasetSpec) -> None:
        self.files = files
        self.spec = spec
        self.shape = torch.Size([len(files), spec.channels, spec.image_size, spec.image_size])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any, /) -> Tensor:
        """Decode some images.

        Args:
            index: A number, a slice, or what becomes int64 or bool rows (B,).

        Returns:
            uint8 (B, C, H, W); of a number (C, H, W).

        Raises:
            IndexError: If there is no such row.
            IntegrityError: If an image is damaged; names its file.
            UserError: If an image has another size than it must have.
        """
        if isinstance(index, int):
            return self[[index]][0]
        # Of the row numbers, a tensor knows best what its index means.
        rows: list[int] = torch.arange(len(self))[index].tolist()
        images = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for start in range(0, len(rows), IMAGES_PER_CHUNK):
            chunk = [self.files[row] for row in rows[start : start + IMAGES_PER_CHUNK]]
            for place, pixels in enumerate(self._decoded(chunk), start):
                images[place] = pixels
        return torch.from_numpy(images)

    def _decoded(self, files: Sequence[str]) -> Iterator[Pixels]:
        def told(place: int) -> tuple[str, str]:
            return files[place], ""

        return decode_labelled(
            files, read_file, self.spec, told=told, fix=_SHOWN, threads=MAX_THREADS
        )
