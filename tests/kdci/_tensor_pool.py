"""An open world out of a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdci.data.open_world.pool import PoolBatch, PoolProgress
from kdci.data.open_world.scoring_engine import local_engine


class TensorPool:
    """What ``OpenWorldScores`` asks of an ``OpenWorldPool``, of images that are there.

    Args:
        images: (M, C, H, W) uint8.
    """

    fingerprint = "a tensor"
    engine = staticmethod(local_engine)

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.num_candidates = len(images)

    def batches(
        self, size: int, workers: Any, progress: PoolProgress | None = None
    ) -> Iterator[PoolBatch]:
        start = 0 if progress is None else progress.total
        ends = [*range(start + size, len(self.images) + 1, size), len(self.images)]
        for end in ends:
            yield PoolBatch(self.images[start:end], [*range(start, end)], PoolProgress(total=end))
            start = end

    def read(self, positions: Sequence[int], workers: Any) -> Iterator[Tensor]:
        for chunk in torch.split(torch.tensor(positions), 3):
            yield self.images[chunk]
