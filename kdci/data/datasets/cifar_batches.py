"""CIFAR's own files (``data_batch_1`` ...), which are pickles, read without running code.

A pickle can call any function it names. Here every name is refused except the few that
rebuild an array, and even these lead to functions of this file. Python's reader of pickles also
takes gigabytes, or crashes, on a few bytes: ``kdci.data.datasets.pickle_opcodes`` looks for these
first.
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

from kdci.data.datasets.pickle_opcodes import require_small
from kdci.errors import IntegrityError, StorageError

# The published files have 31 and 155 MB; anything far larger is something else.
MAX_BYTES = 256 * 2**20
FIX = "fetch the CIFAR python version again"


class _Bytes:
    """Stands in for numpy's dtype of bytes; numpy never sees what a file sets on its own."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Leave it as it is: bytes have no order."""


class _Array:
    """Stands in for an array; its state follows it."""

    __slots__ = ("pixels",)

    def __init__(self) -> None:
        self.pixels = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array without a state")
        _, shape, kind, is_fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _Bytes) or not isinstance(raw, bytes) or not _are_sizes(shape):
            raise pickle.UnpicklingError("an array of something else than bytes")
        values = np.frombuffer(raw, dtype=np.uint8)
        self.pixels = values.reshape(shape, order="F" if is_fortran else "C").copy()


def _are_sizes(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) < 8 and _small_ints(list(shape))


def _reconstruct(subtype: object, shape: object, kind: object) -> _Array:
    """Stand in for numpy's function of this name."""
    return _Array()


def _dtype(code: object, align: object = False, copy: object = True) -> _Bytes:
    if code != "u1":
        raise pickle.UnpicklingError("an array of something else than bytes")
    return _Bytes()


def _latin1(text: object, encoding: object) -> bytes:
    """Stand in for ``_codecs.encode``, by which protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes in another encoding than latin1")
    return text.encode("latin1")


class _Function:
    """A function that a file can call, and can set nothing on."""

    __slots__ = ("__call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self.__call = call

    def __call__(self, *args: object) -> object:
        return self.__call(*args)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets something on a function")


ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Function(_reconstruct),
    ("numpy", "dtype"): _Function(_dtype),
    # Only ever an argument of _reconstruct, which ignores it; a name can not be called.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _Function(_latin1),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Containers, numbers, text and arrays; any other name is refused before its import."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


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
    batch = _restricted_load(path)
    if not isinstance(batch, dict):
        raise IntegrityError(str(path), "not a CIFAR batch", FIX)
    data, found = _entry(batch, "data"), _entry(batch, labels)
    data = data.pixels if isinstance(data, _Array) else data
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        raise IntegrityError(str(path), "data is not an (N, 3072) array of bytes", FIX)
    if not isinstance(found, list) or len(found) != len(data) or not _small_ints(found):
        raise IntegrityError(str(path), f"{labels} are not {len(data)} integers", FIX)
    images = torch.from_numpy(np.ascontiguousarray(data).reshape(-1, 3, 32, 32))
    return images, torch.tensor(found, dtype=torch.int64)


def _small_ints(labels: list[object]) -> bool:
    return all(type(label) is int and abs(label) < 2**31 for label in labels)


def _entry(batch: dict[object, object], key: str) -> object:
    """Return an entry whose key is text, or bytes where Python 3 wrote the file again."""
    return batch.get(key, batch.get(key.encode()))


def _restricted_load(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise IntegrityError(str(path), "too large for a CIFAR batch", FIX)
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(str(path), error.strerror or "can not be read") from error
    load: Callable[[], object] = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load
    try:
        require_small(content)
        return load()
    except Exception as error:
        # The pickle module documents that damaged data may raise any exception.
        raise IntegrityError(str(path), f"refused or damaged pickle: {error}", FIX) from error
