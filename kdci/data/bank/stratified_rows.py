"""Row indices drawn evenly over strata of a bank that may grow, with a resumable state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdci.data.bank.shuffled_rows import ShuffledRows


def stratum_shares(sizes_S: Tensor, *, max_repeats: float = math.inf) -> Tensor:
    """Return the share of draws of each stratum: even, but for the cap on repeats.

    A stratum with a share q of n of the M rows draws each of them q M / n times as often as
    drawing without strata would. Where even shares go beyond ``max_repeats``, the stratum keeps
    that much, and what it gives up is spread evenly over the others. At 1 the draw is the plain
    one, in proportion to size.

    Args:
        sizes_S: Rows of each stratum, 0 or more; (S,). An empty one is never drawn.
        max_repeats: Cap, at least 1; infinity for none.

    Returns:
        Shares, float64, summing to 1; (S,).

    Raises:
        ValueError: There is no row at all, or the cap is below 1.
    """
    total = int(sizes_S.sum())
    if total < 1 or not max_repeats >= 1:
        raise ValueError(f"need rows and max_repeats >= 1, got {total} and {max_repeats}")
    most_S = (max_repeats * sizes_S.double() / total).clamp(max=1.0)
    shares_S = torch.zeros(len(sizes_S), dtype=torch.float64)
    # Water-filling: strata in the order of their caps; each takes the even part of what is left.
    order = torch.argsort(most_S, stable=True)
    left, strata_left = 1.0, int((sizes_S > 0).sum())
    for stratum in order[sizes_S[order] > 0].tolist():
        share = min(left / strata_left, float(most_S[stratum]))
        shares_S[stratum] = share
        left, strata_left = left - share, strata_left - 1
    return shares_S / shares_S.sum()


def pick_evenly(strata_B: Tensor, size: int) -> Tensor:
    """Return the first images of each stratum in turn, as evenly as there are any.

    Args:
        strata_B: Stratum of each candidate, 0 or more; (B,).
        size: How many to pick, at most B.

    Returns:
        (size,) int64 indices, all different.
    """
    by_stratum = torch.argsort(strata_B, stable=True)
    sizes_S = torch.bincount(strata_B)
    starts_S = sizes_S.cumsum(0) - sizes_S
    turn_B = torch.empty_like(strata_B)
    turn_B[by_stratum] = torch.arange(len(strata_B)) - starts_S[strata_B[by_stratum]]
    return torch.argsort(turn_B, stable=True)[:size]


class StratifiedRows:
    """Draws rows evenly over strata; within a stratum without replacement, pass after pass.

    A batch is a systematic sample of the shares: as even as whole images allow in every batch,
    and exactly even over many.

    Args:
        seed: 0 or more.
        max_repeats: See ``stratum_shares``.
    """

    def __init__(self, seed: int, *, max_repeats: float = math.inf) -> None:
        self._seed = seed
        self._max_repeats = max_repeats
        self._random = torch.Generator().manual_seed(_sub_seed(seed, -1))
        self._strata_M = torch.empty(0, dtype=torch.int64)
        self._members: list[Tensor] = []
        self._orders: list[ShuffledRows] = []
        self._shares_S = torch.empty(0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._strata_M)

    def extend(self, strata_B: Tensor) -> None:
        """Take the strata of the rows that follow those known so far.

        Args:
            strata_B: Stratum of each new row, 0 or more; (B,) int64.

        Raises:
            ValueError: A stratum is negative.
        """
        if len(strata_B) and int(strata_B.min()) < 0:
            raise ValueError("strata are counted from 0")
        self._set(torch.cat([self._strata_M, strata_B.long().cpu()]))

    def _set(self, strata_M: Tensor) -> None:
        self._strata_M = strata_M
        sizes_S = torch.bincount(strata_M)
        self._members = [torch.nonzero(strata_M == s).flatten() for s in range(len(sizes_S))]
        while len(self._orders) < len(sizes_S):
            self._orders.append(ShuffledRows(_sub_seed(self._seed, len(self._orders))))
        self._shares_S = (
            stratum_shares(sizes_S, max_repeats=self._max_repeats)
            if len(strata_M)
            else torch.empty(0, dtype=torch.float64)
        )

    @property
    def shares(self) -> Tensor:
        """Share of the draws of each stratum; (S,)."""
        return self._shares_S

    def next(self, size: int) -> Tensor:
        """Return the next rows.

        Args:
            size: Batch size B.

        Returns:
            (B,) int64 indices below the number of rows, grouped by stratum.

        Raises:
            ValueError: There are no rows, or ``size`` is not positive.
        """
        if size < 1 or not len(self):
            raise ValueError(f"need a size and rows, got {size} and {len(self)}")
        offset = torch.rand((), generator=self._random, dtype=torch.float64)
        places_B = (torch.arange(size, dtype=torch.float64) + offset) / size
        drawn_B = torch.searchsorted(self._shares_S.cumsum(0), places_B, right=True)
        # Rounding may leave the last place beyond the sum; empty strata have no width to fall in.
        last = int(torch.nonzero(self._shares_S).max())
        counts_S = torch.bincount(drawn_B.clamp(max=last), minlength=len(self._shares_S))
        parts = []
        for stratum, count in enumerate(counts_S.tolist()):
            if count:
                members = self._members[stratum]
                parts.append(members[self._orders[stratum].next(count, len(members))])
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return all that drawing on needs; the seed and the cap are the caller's to keep."""
        return {
            "strata": self._strata_M,
            "random": self._random.get_state(),
            "orders": [order.state_dict() for order in self._orders],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of an object with the same seed and cap."""
        self._orders = []  # there may be more of them than at the time of the state
        self._set(state["strata"])
        self._random.set_state(state["random"])
        for order, saved in zip(self._orders, state["orders"], strict=True):
            order.load_state_dict(saved)


def _sub_seed(seed: int, stratum: int) -> int:
    """Return a seed of its own for each stratum; -1 is the choice among strata."""
    entropy = np.random.SeedSequence([seed, stratum + 1]).generate_state(1, np.uint64)
    return int(entropy[0] >> np.uint64(1))
