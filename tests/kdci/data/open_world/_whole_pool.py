"""A whole pool in memory, as nothing but a test may hold it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdci.data.open_world.candidates import PoolPart
from kdci.data.open_world.pool import OpenWorldPool
from kdci.data.open_world.scoring_engine import local_engine


class WholePool(NamedTuple):
    """All images, uint8 (M, C, H, W), where they lie, and what was left out."""

    images: Tensor
    skipped: dict[str, int]
    positions: list[int]


def load_whole(parts: Sequence[PoolPart], *, batch_size: int = 7, **settings: Any) -> WholePool:
    """Read a pool batch by batch, and once more by position: both must be the same."""
    pool = OpenWorldPool(parts, **settings)
    with local_engine(None, None) as workers:  # type: ignore[arg-type]
        batches = list(pool.batches(batch_size, workers))
        images = torch.cat([batch.images for batch in batches])
        positions = [position for batch in batches for position in batch.positions]
        again = torch.cat(list(pool.read(positions, workers)))
    assert [len(batch.images) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.equal(images, again)
    return WholePool(images, batches[-1].progress.skipped, positions)
