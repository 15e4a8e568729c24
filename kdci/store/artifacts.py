"""Artifacts on disk: safetensors and arrays beside a JSON card, whole or not there at all.

An artifact is a folder. ``card.json`` names its kind, where it came from (params, code, seeds,
parents, versions) and the SHA-256 of every other file. A folder is written under a temporary
name beside its place, flushed to disk and renamed, so a reader meets the old one or the new
one. Nothing here writes or reads a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.errors import IntegrityError, StorageError, UserError
from kdci.store.hashing import hash_file, hash_json

if TYPE_CHECKING:
    from torch import Tensor

CARD = "card.json"
FORMAT = 1
REBUILD = "remove it and run `dvc repro`"
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass
class Draft:
    """An artifact being written.

    Attributes:
        folder: Where its files go; becomes the artifact.
        card: What the card will say, besides kind and file hashes.
    """

    folder: Path
    card: dict[str, Any] = field(default_factory=dict)

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` as the safetensors file ``name``."""
        save_tensors(self.folder / name, tensors)

    def save_json(self, name: str, value: Any) -> None:
        """Write ``value`` as the JSON file ``name``."""
        text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
        write_bytes(self.folder / name, text.encode())


@contextmanager
def new_artifact(path: Path, *, kind: str, card: Mapping[str, Any]) -> Iterator[Draft]:
    """Write the artifact ``path``; it appears when the block ends, and only then.

    Args:
        path: Folder of the artifact; one that is there is replaced.
        kind: What it is: `teacher`, `pool`, `dictionary`, `student`, `evaluation`.
        card: Provenance and facts, JSON types.

    Raises:
        StorageError: The disk is full or the place can not be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with storage_errors(path):
            draft = Draft(folder, dict(card))
            yield draft
            _seal(draft, kind)
            _replace_folder(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _seal(draft: Draft, kind: str) -> None:
    files = {}
    for file in sorted(draft.folder.rglob("*")):
        if file.is_file():
            name = file.relative_to(draft.folder).as_posix()
            files[name] = {"sha256": hash_file(file), "bytes": file.stat().st_size}
            flush_to_disk(file)
    card = {**draft.card, "kind": kind, "format": FORMAT, "files": files}
    card = json.loads(json.dumps(card, allow_nan=False))  # as a reader gets it: keys are text
    card["content"] = hash_json(files)
    card["card_sha256"] = hash_json(card)
    draft.save_json(CARD, card)
    flush_to_disk(draft.folder)


def _replace_folder(folder: Path, path: Path) -> None:
    """Put ``folder`` in the place of ``path``.

    A folder can not be exchanged in one step everywhere. The old one is moved aside first:
    between the two renames a reader finds nothing, never a mixture.
    """
    folder.chmod(0o755)  # mkdtemp made it private to this user
    old = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    folder.rename(path)
    flush_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed writer of ``path`` left beside it; call while holding its lock."""
    if not path.parent.is_dir():
        return
    for place in path.parent.glob(f".{path.name}.*.tmp"):
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: every file matches the card.

    Attributes:
        path: Its folder.
        card: What its card says.
    """

    path: Path
    card: dict[str, Any]

    @property
    def content(self) -> str:
        """SHA-256 over the files, the card left out: equal for equal results."""
        return str(self.card["content"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage found out: accuracies, proportions, counts."""
        facts: dict[str, Any] = self.card["facts"]
        return facts

    def file(self, name: str) -> Path:
        """Return the path of a file that the card lists.

        Raises:
            IntegrityError: The card lists no such file.
        """
        if name not in self.card["files"]:
            raise IntegrityError(str(self.path), f"holds no {name}", REBUILD)
        return self.path / name

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the safetensors file ``name``."""
        return parse_tensors(self._bytes(name), self.path / name)

    def json(self, name: str) -> Any:
        """Read the JSON file ``name``."""
        return json.loads(self._bytes(name))

    def _bytes(self, name: str) -> bytes:
        """Read a file at once and check these very bytes, whatever came between."""
        data = self.file(name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.card["files"][name]["sha256"]:
            raise IntegrityError(str(self.path / name), "changed while in use", "run it again")
        return data


def read_card(path: Path, *, kind: str) -> dict[str, Any]:
    """Read an artifact's card alone, and check that it is whole and of the right kind.

    Raises:
        UserError: There is no artifact, or one of another kind.
        IntegrityError: The card is damaged.
    """
    file = path / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        stated = card.pop("card_sha256")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(str(path), f"there is no {kind} here", "run `dvc repro`") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IntegrityError(str(file), "is damaged", REBUILD) from None
    if stated != hash_json(card):
        raise IntegrityError(str(file), "was changed after it was written", REBUILD)
    if card["kind"] != kind:
        raise UserError(str(path), f"is a {card['kind']}, not a {kind}", "give the right folder")
    return {**card, "card_sha256": stated}


def open_artifact(path: Path, *, kind: str) -> Artifact:
    """Open an artifact after re-hashing all of its files.

    Raises:
        UserError: There is no artifact, or one of another kind.
        IntegrityError: A file is missing, damaged or changed.
    """
    card = read_card(path, kind=kind)
    while True:
        try:
            for name, entry in card["files"].items():
                _verify(path / name, entry)
        except IntegrityError:
            newer = read_card(path, kind=kind)
            if newer == card:
                raise
            card = newer  # a writer put another artifact here while this one was read
        else:
            return Artifact(path, card)


def _verify(file: Path, entry: Mapping[str, Any]) -> None:
    try:
        if file.stat().st_size == entry["bytes"] and hash_file(file) == entry["sha256"]:
            return
        problem = _damage(file)
    except (FileNotFoundError, NotADirectoryError):
        problem = "is missing"
    raise IntegrityError(str(file), problem, REBUILD)


def _damage(file: Path) -> str:
    with file.open("rb") as handle:
        start = handle.read(4)
    if start.startswith(_PICKLE_STARTS):
        return "was replaced by a pickle or archive, which is never loaded"
    return "does not match the SHA-256 on its card"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file; serialised in memory first, so a full disk is a clean error."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain))


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """Return what the bytes of the safetensors file ``path`` hold.

    Raises:
        IntegrityError: It is not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError):
        raise IntegrityError(str(path), "is not a whole safetensors file", REBUILD) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` and flush it to disk.

    Raises:
        StorageError: With the path and the bytes that were needed.
    """
    with storage_errors(path, needed=len(data)), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader meets the old content or the new."""
    with storage_errors(path, needed=len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write_bytes(temporary, data)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_to_disk(path.parent)


@contextmanager
def storage_errors(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``StorageError`` about ``path``."""
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        if needed is not None:
            what += f" while writing {needed:,} bytes"
        place = error.filename or path
        raise StorageError(str(place), what, "free space or choose a writable place") from error


def flush_to_disk(path: Path) -> None:
    """Ask the system to put a file or a folder's entries on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
