"""Fetch CIFAR from its author's site: on request only, and nothing but the published bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, cast

from kdci.data.datasets.places import CIFAR, Batches
from kdci.errors import IntegrityError, StorageError, UserError
from kdci.store.artifacts import storage_errors

CHUNK_BYTES = 2**20
TIMEOUT_SECONDS = 60
Opener = Callable[[str], AbstractContextManager[IO[bytes]]]
"""From an https address to the bytes there."""


@dataclass(frozen=True)
class Source:
    """A published archive.

    Attributes:
        url: Its https address.
        sha256: Of the archive.
        num_bytes: Of the archive.
        batches: The folder that it unpacks to, and the files that must be in there then.
    """

    url: str
    sha256: str
    num_bytes: int
    batches: Batches

    @property
    def folder(self) -> str:
        """The folder that it unpacks to."""
        return self.batches.folder


SOURCES = {
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170_498_071,
        CIFAR["cifar10"],
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169_001_437,
        CIFAR["cifar100"],
    ),
}


def open_https(url: str) -> AbstractContextManager[IO[bytes]]:
    """Open an address; no redirection leads away from https."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),  # and none for http, ftp or file
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        director.add_handler(handler)
    response = director.open(url, timeout=TIMEOUT_SECONDS)
    return cast("AbstractContextManager[IO[bytes]]", response)


def download(source: Source, path: Path, *, opener: Opener = open_https) -> Path:
    """Fetch, verify and unpack a dataset.

    Everything happens in a temporary folder below ``path``, which is removed in any case; the
    dataset's folder appears whole or not at all.

    Args:
        source: What to fetch.
        path: Folder to unpack in; made where it is missing.
        opener: Opens the address.

    Returns:
        The dataset's folder; where it is there already, nothing is fetched.

    Raises:
        UserError: If the dataset's folder is there, but not whole, the address is not https, or
            this Python has no safe way to unpack.
        IntegrityError: If the archive is not the published one, which is found out before it
            is unpacked.
        StorageError: If the site can not be reached or the disk can not be written to.
    """
    if not source.url.startswith("https://"):
        raise UserError(source.url, "no https address", "fetch nothing from anywhere else")
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Python", "too old to unpack archives safely", "use 3.11.4 or later")
    place = path / source.folder
    if place.exists():
        _require_whole(place, source)
        return place
    with storage_errors(path, needed=source.num_bytes):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".download-") as folder:
            archive = Path(folder) / "archive.tar.gz"
            _fetch(source, archive, opener)
            # Only the published bytes come so far.
            unpacked = Path(folder) / "unpacked"
            shutil.unpack_archive(archive, unpacked, filter="data")
            _require_whole(unpacked / source.folder, source, IntegrityError)
            os.replace(unpacked / source.folder, place)
    return place


def _fetch(source: Source, archive: Path, opener: Opener) -> None:
    digest, count = hashlib.sha256(), 0
    with archive.open("wb") as file:
        for chunk in _chunks(source, opener):
            digest.update(chunk)
            count += len(chunk)
            file.write(chunk)
    if digest.hexdigest() != source.sha256:
        what = f"{count:,} bytes that are not the published {source.num_bytes:,}"
        raise IntegrityError(source.url, f"{what}: another SHA-256", "nothing was unpacked")


def _chunks(source: Source, opener: Opener) -> Iterator[bytes]:
    """Yield what the site sends; at most a byte more than is published."""
    left = source.num_bytes + 1
    try:
        with opener(source.url) as response:
            while chunk := response.read(min(CHUNK_BYTES, left)):
                left -= len(chunk)
                yield chunk
    except (OSError, HTTPException) as error:
        fix = f"try again, or unpack it yourself so that {source.folder} is there"
        reason = getattr(error, "reason", None) or error
        raise StorageError(source.url, f"can not be fetched: {reason}", fix) from error


def _require_whole(
    place: Path, source: Source, error: type[UserError] | type[IntegrityError] = UserError
) -> None:
    missing = [name for name in source.batches.names if not (place / name).is_file()]
    if missing:
        raise error(str(place), f"{', '.join(missing)} missing", "remove it and fetch it again")
