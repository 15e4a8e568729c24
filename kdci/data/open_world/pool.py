"""A pool of unlabelled images as a stream, of one source or several, in bounded memory.

Images are decoded ahead of whoever takes them, a chunk at a time. What was taken is told by a
``PoolProgress``, from which another process goes on without decoding it again.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdci.data.files.decoding import Pixels, UndecodableError, decode_all
from kdci.data.files.listing import OTHER
from kdci.data.files.parquet import require_memory
from kdci.data.open_world.candidates import PartListing, PoolPart, list_part, told
from kdci.data.open_world.photographs import CROPS_PER_CHUNK, PhotographCrops
from kdci.data.open_world.scoring_engine import (
    NUM_DECODED_AHEAD,
    Decoded,
    ScoringEngine,
    Workers,
    local_engine,
)
from kdci.errors import IntegrityError, UserError
from kdci.training.runtime import derive_seed

Item = TypeVar("Item")

MAX_BAD_FRACTION = 0.05
BYTES_PER_CHUNK = 32 * 2**20
"""Of decoded images that are decoded together; of encoded ones the same, about."""
MAX_ITEMS_PER_CHUNK = 1024
_BYTES_PER_PIXEL = 9
"""Of a batch on its way into a network: itself, and two copies as floats."""


@dataclass
class PoolProgress:
    """How far a pool was read; JSON's types alone.

    Attributes:
        part: Which source comes next.
        num_read: Candidates of it that were read.
        num_taken: Images of it that were taken.
        bad: Those that could not be, by reason.
        total: Images taken of all sources.
        skipped: What was left out of the sources before, by reason; of several by
            `sources.<number>: <reason>`.
    """

    part: int = 0
    num_read: int = 0
    num_taken: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad = Counter(self.bad)  # its own

    def state_dict(self) -> dict[str, Any]:
        """Return what ``PoolProgress(**state)`` is made from."""
        return {**vars(self), "bad": dict(self.bad)}


@dataclass(frozen=True)
class PoolBatch:
    """Images that follow one another.

    Attributes:
        images: (B, C, H, W) uint8.
        positions: Where each lies among the candidates of all sources, ascending; B of them.
        progress: What comes after them.
    """

    images: Tensor
    positions: list[int]
    progress: PoolProgress


class OpenWorldPool:
    """The images of one part after the other.

    Args:
        parts: Where the images come from.
        image_size: Height and width of the result in pixels.
        channels: 1 for grey, 3 for RGB.
        seed: For photographs' crops; the other sources draw nothing.
        num_images: The first so many of all parts together; 0: all that the parts give.
        max_bad_fraction: Share of a part's candidates that may be left out before the pool is
            refused: of those that were read, and of those that were listed. Files that do not
            claim to be images are no candidates.
        engine: What the pool is decoded and scored by; it has no say in what comes out.

    Attributes:
        num_candidates: How many images there are at most.
        fingerprint: Another one where positions would mean other images.

    Raises:
        UserError: If a folder is missing, a part has no image, or photographs are too small.
        IntegrityError: If a Parquet file itself is damaged.
    """

    def __init__(
        self,
        parts: Sequence[PoolPart],
        *,
        image_size: int,
        channels: int,
        seed: int,
        num_images: int = 0,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        engine: ScoringEngine = local_engine,
    ) -> None:
        self.shape = (channels, image_size, image_size)
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self.engine = engine
        self._listings = [list_part(part, image_size=image_size) for part in parts]
        ends = list(accumulate(listing.available for listing in self._listings))
        self._starts = [0, *ends[:-1]]
        total = sum(listing.wanted for listing in self._listings)
        self.num_candidates = min(total, num_images) if num_images else total
        # Not the paths: the same files elsewhere are the same pool.
        facts = [f"{listing.part.source} {listing.fingerprint}" for listing in self._listings]
        self.fingerprint = hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()

    def batches(
        self, size: int, workers: Workers, progress: PoolProgress | None = None
    ) -> Iterator[PoolBatch]:
        """Yield the images in batches that do not depend on where sources or chunks end.

        Args:
            size: Images of a batch.
            workers: Decode ahead.
            progress: Where to go on, as a batch of this size told it; None: at the start.

        Yields:
            Batches of ``size``, and at the end what is left, maybe nothing: only with it all is
            known that was skipped.

        Raises:
            UserError: Too many of a source's images can not be used, or a batch does not fit in
                memory.
            IntegrityError: A Parquet file is damaged.
        """
        fix = "score fewer images at once"
        row_bytes = int(np.prod(self.shape))
        held = (NUM_DECODED_AHEAD + 1) * _chunk_items(row_bytes) + _BYTES_PER_PIXEL * size
        require_memory(row_bytes * held, self._listings[0].subject, fix)
        now = replace(progress or PoolProgress())
        images: list[Pixels] = []
        positions: list[int] = []
        for number in range(now.part, len(self._listings)):
            if now.total - now.num_taken == self.num_candidates:
                break
            start = self._starts[number]
            for row, pixels in self._part(now, workers):
                images.append(pixels)
                positions.append(start + row)
                if len(images) == size:
                    yield PoolBatch(self._stacked(images), positions, replace(now))
                    images, positions = [], []
            now = self._closed(now)
        yield PoolBatch(self._stacked(images), positions, now)

    def read(self, positions: Sequence[int], workers: Workers) -> Iterator[Tensor]:
        """Yield the images at some positions once more, uint8 (B, C, H, W), in chunks.

        Args:
            positions: As batches told them, ascending.
            workers: Decode ahead.

        Raises:
            UserError: A folder's files came or went since.
            IntegrityError: An image can not be decoded any more.
        """
        for number, (start, listing) in enumerate(zip(self._starts, self._listings, strict=True)):
            ends = (start, start + listing.available)
            first, last = (bisect_left(positions, end) for end in ends)
            rows = [position - start for position in positions[first:last]]
            if rows and listing.part.source == "photographs":
                yield from self._crops(number, rows)
            elif rows:
                # One more than there are, so that a folder's files are compared to the last.
                for chunk in self._chunks(listing, rows, len(rows) + 1, workers):
                    yield self._stacked(_whole(chunk, listing))

    def _part(self, now: PoolProgress, workers: Workers) -> Iterator[tuple[int, Pixels]]:
        """Yield the images of the part that is next, with their rows, counting them in ``now``."""
        listing, bad = self._listings[now.part], Counter(now.bad)
        now.bad = bad
        unlisted = listing.skipped - Counter({OTHER: listing.skipped[OTHER]})
        self._require_few(listing, unlisted, listing.available)
        limit = min(listing.wanted, self.num_candidates - (now.total - now.num_taken))
        for chunk in self._decoded(now, limit, workers):
            for image in chunk:
                now.num_read += 1
                if isinstance(image, UndecodableError):
                    bad[image.reason] += 1
                else:
                    now.num_taken += 1
                    now.total += 1
                    yield now.num_read - 1, image
            # Whatever follows: it can not become so many that these are few among them.
            if bad.total() > self.max_bad_fraction * min(listing.available, limit + bad.total()):
                self._require_few(listing, bad, now.num_taken)

    def _decoded(
        self, now: PoolProgress, limit: int, workers: Workers
    ) -> Iterator[Sequence[Pixels | UndecodableError]]:
        listing = self._listings[now.part]
        if listing.part.source == "photographs":
            for crops in self._crops(now.part, range(now.num_read, limit)):
                yield list(crops.numpy())
        else:
            rows = range(now.num_read, listing.available)
            yield from self._chunks(listing, rows, limit - now.num_taken, workers)

    def _crops(self, number: int, rows: Sequence[int]) -> Iterator[Tensor]:
        channels, side = self.shape[:2]
        crops = PhotographCrops(
            # As many as are listed, whatever the upper bound: of fewer, none would be the same.
            num_images=self._listings[number].available,
            image_size=side,
            channels=channels,
            # The first part's crops are those of a pool of its own.
            seed=derive_seed(self.seed, "open-world", number) if number else self.seed,
        )
        for start in range(0, len(rows), CROPS_PER_CHUNK):
            chunk = rows[start : start + CROPS_PER_CHUNK]
            yield crops.rows(torch.tensor(chunk, dtype=torch.int64))

    def _chunks(
        self, listing: PartListing, rows: Sequence[int], missing: int, workers: Workers
    ) -> Iterator[Decoded]:
        """Yield a part's candidates, decoded, until no more are missing.

        Never more of them are read than images are missing: what lies beyond must not matter.
        """
        channels, side = self.shape[:2]
        decoder = partial(decode_all, read=listing.read, channels=channels, square=side)
        most = _chunk_items(channels * side * side)
        items = listing.items(rows)
        ahead: deque[tuple[int, Callable[[], Decoded]]] = deque()
        underway = 0

        def fill() -> int:
            added = 0
            while len(ahead) < workers.num_decoded_ahead and missing > underway + added:
                number = min(most, missing - underway - added)
                chunk = list(_within_bytes(islice(items, number)))
                if not chunk:
                    break
                ahead.append((len(chunk), workers.decode(decoder, chunk)))
                added += len(chunk)
            return added

        underway += fill()
        while ahead:
            number, finished = ahead.popleft()
            decoded = finished()
            underway -= number
            missing -= sum(not isinstance(image, UndecodableError) for image in decoded)
            underway += fill()
            yield decoded

    def _closed(self, now: PoolProgress) -> PoolProgress:
        """Return the progress behind a part that was read to its end."""
        listing, bad = self._listings[now.part], Counter(now.bad)
        self._require_few(listing, bad, now.num_taken)
        reasons = listing.skipped + bad
        prefix = f"sources.{now.part}: " if len(self._listings) > 1 else ""
        named = {f"{prefix}{name}": reasons[name] for name in sorted(reasons)}
        return PoolProgress(now.part + 1, total=now.total, skipped=now.skipped | named)

    def _require_few(self, listing: PartListing, bad: Counter[str], good: int) -> None:
        seen = bad.total() + good
        if good == 0 or bad.total() > self.max_bad_fraction * seen:
            reasons = told(bad) or "nothing found"
            what = f"{bad.total()} of {seen} images can not be used ({reasons})"
            fix = f"at most {self.max_bad_fraction:.3g} of them may be bad"
            raise UserError(listing.subject, what, fix)

    def _stacked(self, images: Sequence[Pixels]) -> Tensor:
        if not images:
            return torch.empty((0, *self.shape), dtype=torch.uint8)
        return torch.from_numpy(np.stack(images))


def _chunk_items(row_bytes: int) -> int:
    return max(1, min(MAX_ITEMS_PER_CHUNK, BYTES_PER_CHUNK // row_bytes))


def _whole(chunk: Decoded, listing: PartListing) -> list[Pixels]:
    """Return images that were decoded before."""
    found = []
    for image in chunk:
        if isinstance(image, UndecodableError):
            what = f"an image that was scored is {image.reason} now"
            raise IntegrityError(listing.subject, what, "leave the pool alone, then start again")
        found.append(image)
    return found


def _within_bytes(items: Iterator[Item]) -> Iterator[Item]:
    """Yield items until encoded images among them take ``BYTES_PER_CHUNK``."""
    taken = 0
    for item in items:
        yield item
        taken += len(item) if isinstance(item, bytes) else 0
        if taken >= BYTES_PER_CHUNK:
            return
