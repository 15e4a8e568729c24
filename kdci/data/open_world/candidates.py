"""Sources of unlabelled images for the methods that sample, and what each has to offer."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdci.config.open_world import OpenWorld
from kdci.data.files.decoding import read_file
from kdci.data.files.listing import SUFFIXES, parquet_files, walk_images
from kdci.data.files.parquet import count_rows, iter_blobs, read_blob
from kdci.data.open_world.photographs import LARGEST_SIDE
from kdci.errors import UserError

Source = Literal["photographs", "parquet", "folder"]


@dataclass(frozen=True)
class PoolPart:
    """One source of a pool.

    Attributes:
        source: ``photographs`` (random crops of two bundled ones), ``parquet`` (every *.parquet
            below a folder) or ``folder`` (every JPEG, PNG, WebP and BMP below it). Files are
            taken in the byte order of their relative paths; of each image the largest centred
            square is resized, bilinear with antialiasing.
        path: The folder; ``None`` for photographs.
        num_images: The first so many that can be decoded, or all there are; 0 means all, which
            photographs do not have.
    """

    source: Source
    path: Path | None = None
    num_images: int = 0


@dataclass(frozen=True)
class PartListing:
    """What a part has to offer, before anything is decoded.

    Attributes:
        part: The source.
        available: Number of candidates; of photographs, as many as are asked for.
        fingerprint: Another one where other candidates, or another order of them, are found.
        skipped: What was left out while listing, by reason.
        shards: Parquet files in order.
    """

    part: PoolPart
    available: int
    fingerprint: str
    skipped: Counter[str] = field(default_factory=Counter)
    shards: tuple[Path, ...] = ()

    @property
    def wanted(self) -> int:
        """How many images are to be taken at most."""
        asked = self.part.num_images
        return min(asked, self.available) if asked else self.available

    @property
    def subject(self) -> str:
        """What an error about the part is about."""
        return str(self.part.path or self.part.source)

    @property
    def read(self) -> Callable[[Any], bytes]:
        """What turns one of the ``items`` into encoded bytes."""
        return read_blob if self.part.source == "parquet" else read_file

    def items(self, rows: Sequence[int]) -> Iterator[Any]:
        """Yield candidates of Parquet or of a folder, without reading those in between.

        Args:
            rows: Which, from 0, ascending; such as a ``range``.

        Raises:
            UserError: The folder is another one than was listed; known once it ends.
            IntegrityError: A Parquet file is damaged.
        """
        if self.part.source == "parquet":
            return iter_blobs(self.shards, rows)
        return self._paths(rows)

    def _paths(self, rows: Sequence[int]) -> Iterator[str]:
        assert self.part.path is not None
        wanted = iter(rows)
        row, found = next(wanted, None), _Fingerprint(self.part.path)
        for path in walk_images(self.part.path, Counter()):
            if found.count == row:
                # Absolute: whoever decodes may have another working folder.
                yield os.path.abspath(path)
                row = next(wanted, None)
            found.add(path)
        if found.text() != self.fingerprint:
            what = "files came or went while they were read"
            raise UserError(str(self.part.path), what, "leave the folder alone, then start again")


class _Fingerprint:
    """Tells two orders of files apart by their relative paths."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._from = len(os.fspath(folder)) + 1
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, path: str, facts: str = "") -> None:
        self.count += 1
        self._hash.update(os.fsencode(f"{path[self._from :]}\0{facts}\0"))

    def text(self) -> str:
        return self._hash.hexdigest()


def parts_of(open_world: OpenWorld, root: Path) -> list[PoolPart]:
    """Return the parts of a params block.

    Args:
        open_world: The block.
        root: The folder that its paths are relative to.
    """
    return [
        PoolPart(part.source, root / part.path if part.path else None, part.num_images)
        for part in open_world.parts
    ]


def list_part(part: PoolPart, *, image_size: int = 1) -> PartListing:
    """Find a part's candidates, without decoding any; some of them may be damaged.

    Args:
        part: Where images come from.
        image_size: Height and width in pixels that they are to have.

    Raises:
        UserError: If there is no such folder, it has no such files or some of them are missing,
            or photographs are too small.
        IntegrityError: If a Parquet file is damaged at its end.
    """
    if part.path is None:
        if image_size > LARGEST_SIDE:
            what = f"are {LARGEST_SIDE} pixels high, images are {image_size}"
            raise UserError("photographs", what, "choose from a folder or from Parquet")
        return PartListing(part, part.num_images, f"photographs {part.num_images}")
    if not part.path.is_dir():
        raise UserError(str(part.path), "no such folder", "give the folder of the images")
    return (_list_parquet if part.source == "parquet" else _list_folder)(part, part.path)


def _list_parquet(part: PoolPart, path: Path) -> PartListing:
    shards = parquet_files(path)
    _require_some(path, len(shards), "*.parquet", Counter())
    num_rows, found = 0, _Fingerprint(path)
    for shard in shards:
        rows = count_rows([shard])
        found.add(str(shard), f"{rows} {shard.stat().st_size}")
        num_rows += rows
    if num_rows == 0:
        raise UserError(str(path), "its Parquet files have no rows", "leave it out")
    return PartListing(part, num_rows, found.text(), shards=tuple(shards))


def _list_folder(part: PoolPart, path: Path) -> PartListing:
    skipped: Counter[str] = Counter()
    found = _Fingerprint(path)
    for file in walk_images(path, skipped):
        found.add(file)
    _require_some(path, found.count, ", ".join(sorted(SUFFIXES)), skipped)
    return PartListing(part, found.count, found.text(), +skipped)


def _require_some(path: Path, number: int, kinds: str, skipped: Counter[str]) -> None:
    if not number:
        found = f"no images in it ({told(+skipped)})" if +skipped else "no images in it"
        raise UserError(str(path), found, f"expected {kinds} below it")


def told(reasons: Counter[str]) -> str:
    """Return counts by reason in words."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
