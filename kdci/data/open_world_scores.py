"""How a teacher scores the open world, and the images that are kept for their scores.

What methods that sample have in common: DFND keeps the images that the teacher is surest of,
MosaicKD those that it is least sure of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from kdci.data.image_bank import ImageBank
from kdci.errors import NumericError, UserError
from kdci.models import PixelModel

_CHUNKS_PER_REPORT = 10


class OpenWorldScores:
    """Scores a pool in parts that can be resumed, and puts its best images into a bank.

    Args:
        method: Key of the method, whose ``num_selected`` a too small pool is blamed on.
        name: Of the score, in the metrics.
        score: Maps logits (B, K) to scores (B,).
        keep: Which scores are wanted; of equal ones the earlier image's.
        num_selected: Images to keep.
        batch_size: Images the teacher scores at once.

    Raises:
        ValueError: ``num_selected`` or ``batch_size`` is not positive.
    """

    def __init__(
        self,
        method: str,
        *,
        name: str,
        score: Callable[[Tensor], Tensor],
        keep: Literal["lowest", "highest"],
        num_selected: int,
        batch_size: int,
    ) -> None:
        if num_selected < 1 or batch_size < 1:
            raise ValueError(
                "num_selected and score_batch_size must be at least 1, "
                f"got {num_selected} and {batch_size}"
            )
        self.method = method
        self.name = name
        self.score = score
        self.keep = keep
        self.num_selected = num_selected
        self.batch_size = batch_size
        self._scores_M = torch.empty(0)
        self._is_selected = False

    def choose(
        self, load: Callable[[], Tensor], teacher: PixelModel, bank: ImageBank
    ) -> Iterator[dict[str, float]]:
        """Score the pool, then append the chosen images to the bank in the pool's order.

        Args:
            load: Loads the pool, uint8 (M, C, H, W); not called once all is done.
            teacher: Frozen, in eval mode.
            bank: Receives the images.

        Yields:
            After each part that can be resumed ``scored`` (images so far) and their mean score
            under its name; at the end ``bank`` and, under the name with ``selected_`` before
            it, the mean over the kept images.

        Raises:
            UserError: The pool has fewer images than are to be selected; none was scored.
            NumericError: The teacher's prediction is not finite.
        """
        if self._is_selected:
            return
        pool_MCHW = load()
        if len(pool_MCHW) < self.num_selected:
            raise UserError(
                f"methods.{self.method}.num_selected",
                f"is {self.num_selected}, but the open-world pool has {len(pool_MCHW)} images",
                f"set it to {len(pool_MCHW)} at most, or enlarge the pool",
            )
        while len(self._scores_M) < len(pool_MCHW):
            self._score_more(pool_MCHW, teacher)
            yield {"scored": float(len(self._scores_M)), self.name: float(self._scores_M.mean())}
        yield self._select(pool_MCHW, bank)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far, and whether the choice was made."""
        return {"scores": self._scores_M.clone(), "is_selected": self._is_selected}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._scores_M = state["scores"].clone()
        self._is_selected = bool(state["is_selected"])

    @torch.no_grad()
    def _score_more(self, pool_MCHW: Tensor, teacher: PixelModel) -> None:
        """Score the next few chunks of the pool."""
        start = len(self._scores_M)
        part = pool_MCHW[start : start + _CHUNKS_PER_REPORT * self.batch_size]
        scores = [self._scores_M]
        for chunk in torch.split(part, self.batch_size):
            images = chunk.to(teacher.mean.device).float() / 255
            scores.append(self.score(teacher(images).logits).cpu())
        self._scores_M = torch.cat(scores)
        if not bool(self._scores_M.isfinite().all()):
            raise NumericError(
                "teacher",
                "its prediction on the open-world pool is not finite",
                "check its weights",
            )

    def _select(self, pool_MCHW: Tensor, bank: ImageBank) -> dict[str, float]:
        """Put the images with the wanted scores into the bank, in the pool's order."""
        # Stable, so that of equal scores the earlier image wins on every machine.
        order_M = self._scores_M.argsort(descending=self.keep == "highest", stable=True)
        chosen = order_M[: self.num_selected].sort().values
        for rows in torch.split(chosen, self.batch_size):
            bank.append(pool_MCHW[rows].float() / 255)
        mean_score = float(self._scores_M[chosen].mean())
        self._is_selected = True
        self._scores_M = torch.empty(0)  # they would only swell every later checkpoint
        return {"bank": float(len(bank)), f"selected_{self.name}": mean_score}
