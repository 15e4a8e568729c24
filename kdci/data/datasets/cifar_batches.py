"""CIFAR's own files (``data_batch_1`` ...), which are pickles, read without running code.

A pickle can call any function it names. Here every name is refused except the few that
rebuild an array, and even these lead to functions of this file. A few bytes can also take
gigabytes, or crash Python's reader: what would is not read either.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdci.errors import IntegrityError, StorageError

# The published files have 31 and 155 MB; anything far larger is something else.
MAX_BYTES = 256 * 2**20
MAX_READS = 4_000_000
"""Of an opcode or of what follows it; the largest published file takes less than 1,000,000."""
FIX = "fetch the CIFAR python version again"
_BYTE_TYPE = "u1"
"""Stands in for numpy's dtype of bytes; numpy never sees what a file sets on its own."""
_OPCODES = (
    *("PROTO", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "LONG1"),
    *("LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES"),
    *("SHORT_BINBYTES", "BINBYTES8", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST"),
    *("LIST", "APPEND", "APPENDS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET"),
    *("LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
)
"""What is read as Python reads it: data of CIFAR needs no sets and no classes."""
_STEPS = pickle._Unpickler.dispatch


class _Array:
    """Stands in for an array; its state follows it."""

    state: object = None

    def pixels(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return the array.

        Raises:
            ValueError: If it is none of bytes.
        """
        match self.state:
            case [_, list(shape), kind, is_fortran, bytes() | str() as raw] if kind is _BYTE_TYPE:
                flat = raw.encode("latin1") if isinstance(raw, str) else raw
                pixels = np.frombuffer(flat, dtype=np.uint8)
                return pixels.reshape(shape, order="F" if is_fortran else "C")
        raise ValueError("an array of something else than bytes")


def _reconstruct(subtype: object, shape: object, kind: object) -> _Array:
    """Stand in for numpy's function of this name."""
    return _Array()


def _byte_type(code: object, align: object = False, copy: object = True) -> str:
    if code != _BYTE_TYPE:
        raise ValueError("an array of something else than bytes")
    return _BYTE_TYPE


def _latin1(text: object, encoding: object) -> object:
    """Stand in for ``_codecs.encode``, by which protocol 2 spells bytes; they stay text here."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in another encoding than latin1")
    return text


ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "dtype"): _byte_type,
    # Only ever an argument of _reconstruct, which ignores it; a name can not be called.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _latin1,
}


def _frame(reader: Any) -> None:
    reader.read(8)  # a frame's length, which nothing depends on


def _build(reader: Any) -> None:
    state = reader.stack.pop()
    if isinstance(reader.stack[-1], _Array):
        reader.stack[-1].state = state
    elif reader.stack[-1] is not _BYTE_TYPE:  # bytes have no order to be told
        raise pickle.UnpicklingError("it sets something on what is no array")


def _tuple_of(size: int) -> Callable[[Any], None]:
    def step(reader: Any) -> None:
        reader.stack[-size:] = [reader.stack[-size:]]

    return step


class _ArrayUnpickler(pickle._Unpickler):
    """Containers, numbers, text and arrays; any other name is refused before its import.

    This reader of Python's is the one that is written in Python: in C, the table of remembered
    objects is as long as the largest number in it. Tuples become lists, which no dict takes as a
    key: the hash of a tuple descends into tuples in tuples without a bound, in depth, which ends
    the process, and in number.
    """

    dispatch = {
        **{opcode: _STEPS[opcode] for name in _OPCODES for opcode in getattr(pickle, name)},
        pickle.EMPTY_TUPLE[0]: _STEPS[pickle.EMPTY_LIST[0]],
        pickle.TUPLE[0]: _STEPS[pickle.LIST[0]],
        pickle.TUPLE1[0]: _tuple_of(1),
        pickle.TUPLE2[0]: _tuple_of(2),
        pickle.TUPLE3[0]: _tuple_of(3),
        pickle.FRAME[0]: _frame,
        pickle.BUILD[0]: _build,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


class _FewReads(io.BytesIO):
    """Bytes of which only so many pieces are read."""

    left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("more than a batch of images")
        return super().read(size)


def read_batch(path: Path, *, labels: str = "labels") -> tuple[Tensor, Tensor]:
    """Read one batch file of the python version of CIFAR-10 or CIFAR-100.

    Args:
        path: A pickled dict with ``data``, (N, 3072) uint8, and a list of N integer labels.
        labels: Key of the labels.

    Returns:
        The images, uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    Raises:
        IntegrityError: If the file holds anything but such a dict, or is damaged.
        StorageError: If it can not be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise IntegrityError(str(path), "too large for a CIFAR batch", FIX)
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(str(path), error.strerror or "can not be read") from error
    try:
        batch = _ArrayUnpickler(_FewReads(content), encoding="latin1").load()
        # Keys are text, or bytes where Python 3 wrote the file again.
        data, found = (batch.get(key, batch.get(key.encode())) for key in ("data", labels))
        pixels = data.pixels()
    except Exception as error:
        # The pickle module documents that damaged data may raise any exception.
        raise IntegrityError(str(path), f"refused or damaged pickle: {error}", FIX) from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise IntegrityError(str(path), "data is not an (N, 3072) array of bytes", FIX)
    if not isinstance(found, list) or len(found) != len(pixels) or not _are_small_ints(found):
        raise IntegrityError(str(path), f"{labels} are not {len(pixels)} integers", FIX)
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return images, torch.tensor(found, dtype=torch.int64)


def _are_small_ints(labels: list[object]) -> bool:
    return all(type(label) is int and abs(label) < 2**31 for label in labels)
