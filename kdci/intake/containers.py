"""Formats of checkpoints, told by a file's first bytes."""

from __future__ import annotations

from typing import Literal

from kdci.errors import IntegrityError
from kdci.intake.archive import FETCH, ZIP_START

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
