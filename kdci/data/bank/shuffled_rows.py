"""Row indices in shuffled order over a bank that may grow, with a tiny resumable state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class ShuffledRows:
    """Draws rows without replacement, pass after pass.

    The order of pass p depends only on (seed, p, number of rows), so three integers are
    the whole state and a resumed run draws what the uninterrupted one would have.

    Args:
        seed: 0 or more.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self._seed = seed
        self._pass = 0
        self._cursor = 0
        self._order = torch.empty(0, dtype=torch.int64)

    def next(self, size: int, num_rows: int) -> Tensor:
        """Return the next rows; a batch that outlasts a pass goes on into the next one.

        Args:
            size: Batch size B.
            num_rows: Rows of the bank now; another number than before starts a new pass.

        Returns:
            (B,) int64 indices in [0, num_rows).

        Raises:
            ValueError: If size or num_rows is not positive.
        """
        if size < 1 or num_rows < 1:
            raise ValueError(f"need size and num_rows above 0, got {size} and {num_rows}")
        if num_rows != len(self._order):
            self._start_pass(self._pass + 1, num_rows)
        parts: list[Tensor] = []
        missing = size
        while missing:
            if self._cursor == num_rows:
                self._start_pass(self._pass + 1, num_rows)
            part = self._order[self._cursor : self._cursor + missing]
            self._cursor += len(part)
            missing -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def _start_pass(self, number: int, num_rows: int) -> None:
        # Hashed together, so that (seed 0, pass 1) and (seed 1, pass 0) are unrelated.
        entropy = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        self._pass = number
        self._cursor = 0
        self._order = torch.randperm(num_rows, generator=generator)

    def state_dict(self) -> dict[str, int]:
        """Return pass, cursor and number of rows; the seed is the caller's to keep."""
        return {"pass": self._pass, "cursor": self._cursor, "num_rows": len(self._order)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a state of an object with the same seed.

        Raises:
            ValueError: If the cursor lies outside the pass.
        """
        if not 0 <= state["cursor"] <= state["num_rows"]:
            raise ValueError(f"cursor {state['cursor']} of {state['num_rows']} rows")
        self._start_pass(state["pass"], state["num_rows"])
        self._cursor = state["cursor"]
