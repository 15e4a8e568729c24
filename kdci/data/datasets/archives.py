"""Unpack a tar archive that may be hostile: plain files below one folder, and nothing else."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

from kdci.errors import IntegrityError, UserError

MAX_MEMBERS = 64
"""Files and folders of an archive."""
FIX = "fetch it again"
# What tarfile and gzip trip over; what the disk refuses is another OSError.
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError)


class _Bounded:
    """A stream that ends with an error where an archive grows beyond all bounds."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, most: int) -> None:
        self._stream, self._left = stream, most

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("it holds more than it may")
        return data


def unpack_tar_gz(archive: Path, into: Path, *, folder: str, max_bytes: int) -> None:
    """Unpack ``archive`` into a new folder of the caller's, who removes it on an error.

    Args:
        archive: A .tar.gz file.
        into: An empty folder.
        folder: The one folder in which all files must lie.
        max_bytes: Bound of the unpacked archive; it is never read further.

    Raises:
        IntegrityError: If it is damaged, larger than that, or holds links, devices, or a path
            outside of ``folder``. Nothing outside of ``into`` was touched.
        UserError: If this Python has no safe way to unpack.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Python", "too old to unpack archives safely", "use 3.11.4 or later")
    try:
        with gzip.open(archive) as stream:
            source: Any = _Bounded(stream, max_bytes)
            # Read as a stream: a member's size is seen before any of it is decompressed.
            with tarfile.open(fileobj=source, mode="r|") as tar:
                for number, member in enumerate(tar):
                    _require_plain(member, number, folder)
                    tar.extract(member, into, set_attrs=False, filter="data")
    except _DAMAGE as error:
        raise IntegrityError(str(archive), f"not unpacked: {error}", FIX) from error


def _require_plain(member: tarfile.TarInfo, number: int, folder: str) -> None:
    """Refuse a member that is more than a file or a folder inside of ``folder``.

    The filter refuses most of this too, but not in every version of Python without gaps.
    """
    if number >= MAX_MEMBERS:
        raise tarfile.ReadError(f"more than {MAX_MEMBERS} members")
    name = ascii(member.name)
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise tarfile.ReadError(f"{name} is neither file nor folder")
    parts = member.name.split("/")
    if parts[0] != folder or ".." in parts or "" in parts or "\0" in member.name:
        raise tarfile.ReadError(f"{name} lies outside of {folder}")
