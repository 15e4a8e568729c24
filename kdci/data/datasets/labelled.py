"""A labelled split: images, in memory or in files, and their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Split = Literal["train", "test"]


class ImageSet(Protocol):
    """What is asked of (N, C, H, W) uint8 images: of a tensor, or of files decoded when needed.

    An index is what a tensor takes along its first axis: a number, a slice, int64 rows.
    """

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what indexing returns: uint8."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class LabelledImages:
    """Images and their labels.

    Attributes:
        images: (N, C, H, W) uint8, 0 is black and 255 is 1.0.
        labels: (N,) int64, from 0 to K - 1.

    Raises:
        ValueError: If shapes or dtypes are not these.
    """

    images: ImageSet
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or len(self.images.shape) != 4:
            raise ValueError(
                f"images must be uint8 (N, C, H, W), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)
