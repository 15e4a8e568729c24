"""The format of a checkpoint, and torch's zip archive looked over before torch meets it.

torch inflates compressed members and checks no checksum, so a small file can ask for any amount
of memory and a flipped bit goes unnoticed. ``torch.save`` stores members as they are.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Literal

from kdci.errors import IntegrityError
from kdci.intake.limits import MAX_ENTRIES, MAX_NAME_LENGTH, MAX_PICKLE_BYTES

ZIP_START = b"PK\x03\x04"
_END_START, _END_BYTES = b"PK\x05\x06", 22
_ENCRYPTED = 0x1
FETCH = "fetch it again"
SAVE = "save the state dict again with torch.save"
Container = Literal["torch", "safetensors"]


def container_of(data: bytes, subject: str) -> Container:
    """Tell a file's format by its content.

    Raises:
        IntegrityError: It is empty, or of a kind that is never loaded.
    """
    if not data:
        raise IntegrityError(subject, "is empty", FETCH)
    if data.startswith(ZIP_START):
        return "torch"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return "safetensors"
    if data.startswith(b"\x80"):
        what = "is a bare pickle or of torch's format before 1.6, which are not read"
        fix = "where it was made: torch.save(torch.load(FILE, weights_only=True), NEW)"
        raise IntegrityError(subject, what, fix)
    what = "is damaged, or neither a checkpoint of torch nor safetensors"
    raise IntegrityError(subject, what, FETCH)


def check_archive(data: bytes, subject: str) -> None:
    """Check the members of an archive by their entries, without reading them.

    Args:
        data: The file's bytes.
        subject: Its name, for messages.

    Raises:
        IntegrityError: It is damaged, holds compressed or foreign members, is a program, or
            is larger inside than outside.
    """
    with _opened(data, subject):
        pass


def plain_archive(data: bytes, subject: str) -> bytes:
    """Return an archive of the same members written anew, their checksums verified.

    torch reads entries otherwise than Python does: marked as a folder, a member is left out and
    memory shown that was never written. What is written here means the same to both.

    Raises:
        IntegrityError: As ``check_archive``, or a member does not match its checksum.
    """
    copy = io.BytesIO()
    with _opened(data, subject) as archive, zipfile.ZipFile(copy, "w") as new:
        for member in archive.infolist():
            new.writestr(zipfile.ZipInfo(member.filename), archive.read(member))
    return copy.getvalue()


@contextmanager
def _opened(data: bytes, subject: str) -> Iterator[zipfile.ZipFile]:
    # No comment after the directory, so that all readers find the same one.
    if data[-_END_BYTES : -_END_BYTES + 4] != _END_START:
        raise IntegrityError(subject, "is cut off, or no archive of torch.save", FETCH)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_members(archive.infolist(), len(data), subject)
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError):
        what = "is a damaged archive: a member does not match its entry or checksum"
        raise IntegrityError(subject, what, FETCH) from None


def _check_members(members: Sequence[zipfile.ZipInfo], num_bytes: int, subject: str) -> None:
    if len(members) > MAX_ENTRIES:
        what = f"holds {len(members):,} members, at most {MAX_ENTRIES:,} are read"
        raise IntegrityError(subject, what, SAVE)
    for member in members:
        _check_member(member, subject)
    total = sum(member.file_size for member in members)
    if total > num_bytes:
        what = f"states {total:,} bytes of content in a file of {num_bytes:,}"
        raise IntegrityError(subject, what, FETCH)
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise IntegrityError(subject, "holds two members of one name", SAVE)
    _check_kind([PurePosixPath(name) for name in names], subject)


def _check_member(member: zipfile.ZipInfo, subject: str) -> None:
    name = _short(member.filename)
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        what = f"member {name} is compressed, which torch.save never does"
        raise IntegrityError(subject, what, SAVE)
    if member.flag_bits & _ENCRYPTED:
        raise IntegrityError(subject, f"member {name} is encrypted", SAVE)
    parts = PurePosixPath(member.filename).parts
    if len(parts) < 2 or parts[0] == "/" or ".." in parts or len(member.filename) > MAX_NAME_LENGTH:
        raise IntegrityError(subject, f"member {name} has a name torch.save never writes", SAVE)
    if parts[-1] == "data.pkl" and member.file_size > MAX_PICKLE_BYTES:
        what = f"its pickle has {member.file_size:,} bytes, far more than names and shapes"
        raise IntegrityError(subject, what, SAVE)


def _check_kind(names: Sequence[PurePosixPath], subject: str) -> None:
    if any(name.parts[1] in ("code", "constants.pkl") for name in names):
        what = "is a TorchScript program, which is never run"
        raise IntegrityError(subject, what, "save the state dict of the module it was made from")
    if len({name.parts[0] for name in names}) != 1 or not any(
        name.parts[1:] == ("data.pkl",) for name in names
    ):
        raise IntegrityError(subject, "is no archive of torch.save", "give a checkpoint of torch")


def _short(name: str) -> str:
    """Return a foreign name that is fit for a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name[:60])
