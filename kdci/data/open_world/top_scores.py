"""The best scores of a stream, of any length."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Keep = Literal["lowest", "highest"]


class TopScores:
    """Keeps the best scores in a heap whose root is the worst of them.

    Of equal scores the earlier wins: what is kept is what a stable sort of all would put first.

    Args:
        size: How many are kept.
        keep: Which scores are the best.
    """

    def __init__(self, size: int, *, keep: Keep) -> None:
        self.size = size
        self._sign = 1.0 if keep == "highest" else -1.0
        # Pairs (score, -position): of equal scores the latest is the worst.
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, scores_B: Tensor, positions: Sequence[int]) -> None:
        """Take more scores in.

        Args:
            scores_B: Finite, (B,).
            positions: Where each came from, each beyond all before it; B of them.
        """
        heap = self._heap
        for score, position in zip(scores_B.tolist(), positions, strict=True):
            entry = (self._sign * score, -position)
            if len(heap) < self.size:
                heapq.heappush(heap, entry)
            elif entry > heap[0]:
                heapq.heapreplace(heap, entry)

    def in_order(self) -> tuple[list[int], list[float]]:
        """Return positions, ascending, and the score at each."""
        kept = sorted((-behind, self._sign * score) for score, behind in self._heap)
        return [position for position, _ in kept], [score for _, score in kept]

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, in order."""
        positions, scores = self.in_order()
        return {
            "positions": torch.tensor(positions, dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        pairs = zip(state["scores"].tolist(), state["positions"].tolist(), strict=True)
        self._heap = [(self._sign * score, -position) for score, position in pairs]
        heapq.heapify(self._heap)
