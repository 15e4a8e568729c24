"""A first-in-first-out memory of feature pairs, from which negatives are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FeatureMemory:
    """The newest rows added, each a pair of feature vectors of one image, on the CPU.

    Space is taken as rows come, not for the whole size at once: at the size CMI uses, a
    WRN-40-2 teacher's features fill 886 MB.

    Args:
        size: Most rows held; older ones are overwritten.
        num_features: Length d of each of the two vectors.
    """

    def __init__(self, size: int, num_features: int) -> None:
        self.size = size
        self._length = 0
        self._pointer = 0
        self._store = torch.empty(0, 2, num_features)

    def __len__(self) -> int:
        return self._length

    @property
    def rows(self) -> Tensor:
        """A copy of the rows held, (len, 2, d) float32, the oldest at the write pointer."""
        return self._store[: self._length].clone()

    def add(self, rows_B2d: Tensor) -> None:
        """Take rows in, over the oldest where there is no room left.

        Args:
            rows_B2d: At most ``size`` pairs, (B, 2, d), any device; stored without gradient.

        Raises:
            ValueError: If the shape is another, or there are more rows than fit.
        """
        if rows_B2d.shape[1:] != self._store.shape[1:] or len(rows_B2d) > self.size:
            raise ValueError(
                f"rows must be at most {self.size} of shape {tuple(self._store.shape[1:])}, "
                f"got {tuple(rows_B2d.shape)}"
            )
        end = self._pointer + len(rows_B2d)
        self._grow(min(end, self.size))
        slots = torch.arange(self._pointer, end) % self.size
        self._store[slots] = rows_B2d.detach().to("cpu", torch.float32)
        self._length = min(self._length + len(rows_B2d), self.size)
        self._pointer = end % self.size

    def draw(self, num: int, random: torch.Generator) -> Tensor:
        """Return ``num`` rows without replacement, or all of them if there are fewer.

        Args:
            num: 0 or more.
            random: CPU stream to draw from.

        Returns:
            A copy, (min(num, len), 2, d) float32 on the CPU.
        """
        return self._store[torch.randperm(self._length, generator=random)[:num]]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the rows, and the write pointer."""
        return {"rows": self.rows, "pointer": self._pointer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, which stays the caller's.

        Raises:
            ValueError: If the rows do not fit this memory.
        """
        rows: Tensor = state["rows"]
        length, pointer = len(rows), int(state["pointer"])
        # Until the memory is full, the pointer is where the next row goes.
        fits = 0 <= pointer < self.size if length == self.size else pointer == length < self.size
        if rows.shape[1:] != self._store.shape[1:] or not fits:
            raise ValueError(
                f"a state of {tuple(rows.shape)} rows at {pointer} is of another memory than "
                f"{self.size} of shape {tuple(self._store.shape[1:])}"
            )
        self._store = rows.detach().to("cpu", torch.float32, copy=True)
        self._length, self._pointer = length, pointer

    def _grow(self, needed: int) -> None:
        """Make room for ``needed`` rows; by doubling, so that each is copied about once."""
        if needed > len(self._store):
            capacity = min(self.size, max(needed, 2 * len(self._store)))
            grown = torch.empty(capacity, *self._store.shape[1:])
            grown[: self._length] = self._store[: self._length]
            self._store = grown
