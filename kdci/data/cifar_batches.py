"""CIFAR-10's own files (``data_batch_1`` ...), which are pickles, read without running code.

A pickle can call any function it names. Here every name is refused except the few that
rebuild an array, and even these lead to functions of this file, so that the worst a
forged file can do is to be refused.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdci.data.labelled import LabelledImages
from kdci.errors import IntegrityError, StorageError

# The published files have 31 MB; anything far larger is something else.
MAX_BYTES = 512 * 2**20
FIX = "fetch the CIFAR-10 python version again"


def _reconstruct(subtype: object, shape: object, kind: object) -> npt.NDArray[np.uint8]:
    """Stand in for numpy's function of this name; the array's state follows it."""
    return np.empty(0, dtype=np.uint8)


def _dtype(code: object, align: object = False, copy: object = True) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
        raise pickle.UnpicklingError(f"array of dtype {code!r}")
    # A copy: the state that follows would otherwise be set on numpy's own singleton.
    return np.dtype(code, False, True)


def _latin1(text: object, encoding: object) -> bytes:
    """Stand in for ``_codecs.encode``, by which protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "dtype"): _dtype,
    # Only ever an argument of _reconstruct, which ignores it; a name can not be called.
    ("numpy", "ndarray"): "numpy.ndarray",
    ("_codecs", "encode"): _latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Containers, numbers, text and arrays; any other name is refused before its import."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read_batch(path: Path) -> LabelledImages:
    """Read one batch file of CIFAR-10's python version.

    Args:
        path: A pickled dict with ``data``, (N, 3072) uint8, and ``labels``, N integers.

    Returns:
        The (N, 3, 32, 32) images with their labels.

    Raises:
        IntegrityError: If the file holds anything but such a dict, or is damaged.
        StorageError: If it can not be read.
    """
    batch = _restricted_load(path)
    if not isinstance(batch, dict):
        raise IntegrityError(str(path), "not a CIFAR-10 batch", FIX)
    data, labels = _entry(batch, "data"), _entry(batch, "labels")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != 3072
    ):
        raise IntegrityError(str(path), "data is not an (N, 3072) array of bytes", FIX)
    if not isinstance(labels, list) or len(labels) != len(data) or not _small_ints(labels):
        raise IntegrityError(str(path), f"labels are not {len(data)} integers", FIX)
    images = torch.from_numpy(np.ascontiguousarray(data).reshape(-1, 3, 32, 32))
    return LabelledImages(images, torch.tensor(labels, dtype=torch.int64))


def _small_ints(labels: list[object]) -> bool:
    return all(type(label) is int and abs(label) < 2**31 for label in labels)


def _entry(batch: dict[object, object], key: str) -> object:
    """Return an entry whose key is text, or bytes where Python 3 wrote the file again."""
    return batch.get(key, batch.get(key.encode()))


def _restricted_load(path: Path) -> object:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise IntegrityError(str(path), "too large for a CIFAR-10 batch", FIX)
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(str(path), error.strerror or "can not be read") from error
    load: Callable[[], object] = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load
    try:
        return load()
    except Exception as error:
        # The pickle module documents that damaged data may raise any exception.
        raise IntegrityError(str(path), f"refused or damaged pickle: {error}", FIX) from error
