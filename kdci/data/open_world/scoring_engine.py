"""What decodes and scores a pool: this process, or an engine that another package brings.

An engine is found by its name in the entry points of the group ``kdci.scoring_engines``, so that
the library knows none of the packages that one is made of. Whatever the engine, batches are
formed by ``OpenWorldPool``, and each is scored whole by ``score_batch``: at the same number of
threads the scores are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch
from torch import Tensor

from kdci.data.files.decoding import Pixels, UndecodableError
from kdci.errors import UserError
from kdci.models import PixelModel

GROUP = "kdci.scoring_engines"
LOCAL = "local"
NUM_DECODED_AHEAD = 2
"""Chunks that wait, or are decoded, beside this process's scoring."""

Score = Callable[[Tensor], Tensor]
"""From logits (B, K) to scores (B,)."""


Decoded = list[Pixels | UndecodableError]
Decoder = Callable[[Sequence[Any]], Decoded]
"""From candidates of a pool to the pixels of each, or why there are none; it can be pickled."""


class Workers(Protocol):
    """What decodes and scores while an engine is open.

    Both methods return at once, or after the work; what they return waits for the result.

    Attributes:
        num_decoded_ahead: Chunks that are given to ``decode`` before the first is asked for.
        num_scored_ahead: Batches that are given to ``score`` likewise.
    """

    num_decoded_ahead: int
    num_scored_ahead: int

    def decode(self, decoder: Decoder, items: Sequence[Any]) -> Callable[[], Decoded]:
        """Begin to decode a chunk of candidates."""

    def score(self, images_BCHW: Tensor) -> Callable[[], Tensor]:
        """Begin to score a batch, uint8; the scores are (B,), on the CPU."""


ScoringEngine = Callable[[PixelModel, Score], AbstractContextManager[Workers]]
"""Opens workers that hold a frozen teacher, in eval mode, and what maps its logits to scores."""


@torch.no_grad()
def score_batch(teacher: PixelModel, score: Score, images_BCHW: Tensor) -> Tensor:
    """Return the scores of uint8 images, (B,) on the CPU."""
    images = images_BCHW.to(teacher.mean.device).float() / 255
    return score(teacher(images).logits).cpu()


class _LocalWorkers:
    """Scores where it is asked to, and decodes in a thread beside."""

    num_decoded_ahead = NUM_DECODED_AHEAD
    num_scored_ahead = 1

    def __init__(self, teacher: PixelModel, score: Score, executor: ThreadPoolExecutor) -> None:
        self._teacher, self._score, self._executor = teacher, score, executor

    def decode(self, decoder: Decoder, items: Sequence[Any]) -> Callable[[], Decoded]:
        return self._executor.submit(decoder, items).result

    def score(self, images_BCHW: Tensor) -> Callable[[], Tensor]:
        scores = score_batch(self._teacher, self._score, images_BCHW)
        return lambda: scores


@contextmanager
def local_engine(teacher: PixelModel, score: Score) -> Iterator[Workers]:
    """Decode and score in this process; see ``ScoringEngine``.

    One thread decodes, while the teacher computes outside of Python's lock. Large images are
    decoded by several, see ``decode_all``; of small ones Python does most, one thread at a time.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="decoding")
    try:
        yield _LocalWorkers(teacher, score, executor)
    finally:
        executor.shutdown(cancel_futures=True)


def find_engine(name: str, key: str) -> ScoringEngine:
    """Return an engine by its name.

    Args:
        name: `local`, or as an entry point of ``GROUP`` is called.
        key: The params key that asks for it.

    Raises:
        UserError: There is none of that name, or what it needs is not installed.
    """
    if name == LOCAL:
        return local_engine
    found = entry_points(group=GROUP, name=name)
    if not found:
        what = f"{name} is not among the installed engines"
        raise UserError(key, what, "install kdci again, for its entry points, or use local")
    make: Callable[[str], ScoringEngine] = next(iter(found)).load()
    return make(key)
