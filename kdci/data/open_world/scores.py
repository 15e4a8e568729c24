"""How a teacher scores the open world, and the images that are kept for their scores.

What methods that sample have in common: DFND keeps the images that the teacher is surest of,
MosaicKD those that it is least sure of.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from kdci.data.bank.image_bank import ImageBank
from kdci.data.open_world.pool import OpenWorldPool, PoolBatch, PoolProgress
from kdci.data.open_world.scoring_engine import Score, Workers
from kdci.data.open_world.top_scores import Keep, TopScores
from kdci.errors import NumericError, UserError
from kdci.models import PixelModel

_BATCHES_PER_REPORT = 10
_BYTES_PER_APPEND = 8 * 2**20
"""Of chosen images that are stored at once: on their way they are floats, several times."""
_BYTES_PER_REPORT = 320 * 2**20
"""Of those that are stored between two reports."""
_log = logging.getLogger(__name__)


@dataclass
class OpenWorldScores:
    """Scores a pool in parts that can be resumed, and puts its best images into a bank.

    The pool is read as a stream, and of all scores the best are kept. The images chosen are read
    a second time: kept from the first, they would have to be stored as often as the choice among
    those seen so far changes, and a resumed run would find them changed.

    Args:
        method: Key of the method, whose ``num_selected`` a too small pool is blamed on.
        name: Of the score, in the metrics.
        score: Maps logits (B, K) to scores (B,).
        keep: Which scores are wanted; of equal ones the earlier image's.
        num_selected: Images to keep.
        batch_size: Images the teacher scores at once.
        skipped: Receives how many candidates could not be used, by reason, once all is scored.
    """

    method: str
    _: KW_ONLY
    name: str
    score: Score
    keep: Keep
    num_selected: int
    batch_size: int
    skipped: dict[str, int]

    def __post_init__(self) -> None:
        self._is_selected = False
        self._start()

    def _start(self, fingerprint: str = "") -> None:
        """Forget all scores; begin with the pool of this fingerprint."""
        self._fingerprint = fingerprint
        self._progress = PoolProgress()
        self._sum = 0.0
        self._num_stored = 0
        self._top = TopScores(self.num_selected, keep=self.keep)

    def choose(
        self, load: Callable[[], OpenWorldPool], teacher: PixelModel, bank: ImageBank
    ) -> Iterator[dict[str, float]]:
        """Score the pool, then append the chosen images to the bank in the pool's order.

        Args:
            load: Opens the pool; not called once all is done.
            teacher: Frozen, in eval mode.
            bank: Receives the images.

        Yields:
            After each part that can be resumed ``scored`` (images so far) and their mean score
            under its name, later ``bank``; at the end ``bank`` and, under the name with
            ``selected_`` before it, the mean over the kept images.

        Raises:
            UserError: The pool has fewer images than are to be selected, or too many of it can
                not be used; none was kept.
            NumericError: The teacher's prediction is not finite.
        """
        if self._is_selected:
            return
        pool = load()
        self._require_enough(pool.num_candidates)
        if self._fingerprint != pool.fingerprint:
            if self._fingerprint:
                _log.warning("kdci: warning: the open world changed; it is scored from the start")
                bank.truncate(len(bank) - self._num_stored)
            self._start(pool.fingerprint)
        with pool.engine(teacher, self.score) as workers:
            yield from self._score_all(pool, workers)
            yield from self._store(pool, workers, bank)

    def state_dict(self) -> dict[str, Any]:
        """Return the best scores so far, how far the pool was read, and what was stored."""
        return {
            **self._top.state_dict(),
            "fingerprint": self._fingerprint,
            "progress": self._progress.state_dict(),
            "sum": self._sum,
            "num_stored": self._num_stored,
            "skipped": dict(self.skipped),
            "is_selected": self._is_selected,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self._start(state["fingerprint"])
        self._top.load_state_dict(state)
        self._progress = PoolProgress(**state["progress"])
        self._sum = float(state["sum"])
        self._num_stored = int(state["num_stored"])
        self.skipped.update(state["skipped"])
        self._is_selected = bool(state["is_selected"])

    def _require_enough(self, num_images: int) -> None:
        if num_images < self.num_selected:
            raise UserError(
                f"methods.{self.method}.num_selected",
                f"is {self.num_selected}, but the open-world pool has {num_images} images",
                f"set it to {num_images} at most, or enlarge the pool",
            )

    def _score_all(self, pool: OpenWorldPool, workers: Workers) -> Iterator[dict[str, float]]:
        """Score what is left of the pool, reporting as often as its start would have been."""
        told = self._progress.total
        for number, (batch, scores) in enumerate(self._scored(pool, workers), 1):
            self._take(batch, scores)
            if number % _BATCHES_PER_REPORT == 0:
                told = self._progress.total
                yield self._report()
        self._require_enough(self._progress.total)
        self.skipped.update(self._progress.skipped)
        if told < self._progress.total:
            yield self._report()

    def _scored(self, pool: OpenWorldPool, workers: Workers) -> Iterator[tuple[PoolBatch, Tensor]]:
        """Yield batches with their scores, some of which are computed ahead."""
        ahead: deque[tuple[PoolBatch, Callable[[], Tensor]]] = deque()
        for batch in pool.batches(self.batch_size, workers, self._progress):
            ahead.append((batch, workers.score(batch.images) if batch.positions else _no_scores))
            if len(ahead) >= workers.num_scored_ahead:
                done, scores = ahead.popleft()
                yield done, scores()
        for done, scores in ahead:
            yield done, scores()

    def _take(self, batch: PoolBatch, scores_B: Tensor) -> None:
        if not bool(scores_B.isfinite().all()):
            raise NumericError(
                "teacher",
                "its prediction on the open-world pool is not finite",
                "check its weights",
            )
        self._top.add(scores_B, batch.positions)
        self._sum += float(scores_B.double().sum())
        self._progress = batch.progress

    def _report(self) -> dict[str, float]:
        total = self._progress.total
        return {"scored": float(total), self.name: self._sum / total}

    def _store(
        self, pool: OpenWorldPool, workers: Workers, bank: ImageBank
    ) -> Iterator[dict[str, float]]:
        """Put the images with the wanted scores into the bank, in the pool's order."""
        positions, scores = self._top.in_order()
        stored = 0
        for chunk in pool.read(positions[self._num_stored :], workers):
            for images in torch.split(chunk, max(1, _BYTES_PER_APPEND // chunk[0].nbytes)):
                bank.append(images.float() / 255)
                self._num_stored += len(images)
                stored += images.nbytes
            if stored >= _BYTES_PER_REPORT:
                stored = 0
                yield {"bank": float(len(bank))}
        mean_score = float(torch.tensor(scores).mean())
        self._start()  # it would only swell every later checkpoint
        self._is_selected = True
        yield {"bank": float(len(bank)), f"selected_{self.name}": mean_score}


def _no_scores() -> Tensor:
    return torch.empty(0)
