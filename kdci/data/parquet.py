"""Images in Hugging Face Parquet files: a struct column whose ``bytes`` hold the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdci.data.decoding import Pixels, UndecodableError, decode_all
from kdci.data.labelled import LabelledImages
from kdci.errors import IntegrityError, StorageError, UserError

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
ROWS_PER_BATCH = 1024
LABELLED_FIX = "expected a struct column with binary bytes and an integer label column"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file; what pyarrow raises becomes one line naming the file."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        raise StorageError(str(path), error.strerror or "can not be read") from error
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(
            str(path), f"not a readable Parquet file: {error}", "fetch the file again"
        ) from error


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    binary = (pa.types.is_binary, pa.types.is_large_binary)
    return any(child.name == "bytes" and any(is_(child.type) for is_ in binary) for child in kind)


def _choose(names: list[str], preferred: Sequence[str], path: Path, what: str) -> str:
    """Return the first preferred name, else the only one."""
    for name in preferred:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    found = f"several {what} columns: {', '.join(names)}" if names else f"no {what} column"
    raise UserError(str(path), found, LABELLED_FIX)


def image_column(schema: pa.Schema, path: Path) -> str:
    """Return the name of the column whose type is a struct with binary ``bytes``.

    Raises:
        UserError: If there is none, or several and none is called image or img.
    """
    return _choose([f.name for f in schema if _is_image(f.type)], IMAGE_NAMES, path, "image")


def label_column(schema: pa.Schema, path: Path) -> str:
    """Return the integer column called label, labels or fine_label, or the only integer one.

    Raises:
        UserError: If there is no such column.
    """
    integers = [f.name for f in schema if pa.types.is_integer(f.type)]
    return _choose(integers, LABEL_NAMES, path, "label")


def count_rows(paths: Sequence[Path]) -> int:
    """Return the number of rows of all files together, from their footers.

    Raises:
        IntegrityError: If a file is not Parquet.
    """
    total = 0
    for path in paths:
        with _opened(path) as file:
            total += int(file.metadata.num_rows)
    return total


def iter_blobs(paths: Sequence[Path]) -> Iterator[bytes | None]:
    """Yield the encoded image of every row, file by file; ``None`` where the cell is null.

    Raises:
        UserError: If a file has no image column.
        IntegrityError: If a file is damaged.
    """
    for path in paths:
        with _opened(path) as file:
            name = image_column(file.schema_arrow, path)
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[name]):
                yield from batch.column(name).field("bytes").to_pylist()


def read_blob(blob: bytes | None) -> bytes:
    """Return the bytes of a cell.

    Raises:
        UndecodableError: If the cell is null.
    """
    if blob is None:
        raise UndecodableError("missing")
    return blob


def check_labelled(path: Path, *, image_size: int, channels: int) -> None:
    """Check the columns and the first image of one file, without reading the rest.

    Raises:
        UserError: If a column is missing or the first image has another size.
        IntegrityError: If the file or its first image is damaged.
    """
    with _opened(path) as file:
        image_column(file.schema_arrow, path)
        label_column(file.schema_arrow, path)
    for blobs, _ in _labelled_batches(path, rows=1):
        _decoded(blobs, path, 0, image_size=image_size, channels=channels)
        break


def read_labelled(paths: Sequence[Path], *, image_size: int, channels: int) -> LabelledImages:
    """Decode every row of the files, in order.

    Args:
        paths: Parquet files with the same kind of columns.
        image_size: Height and width in pixels that every image must have.
        channels: 1 or 3; images are converted.

    Returns:
        All images and labels; labels are not yet compared with a number of classes.

    Raises:
        UserError: If a column is missing, a label is null or an image has another size.
        IntegrityError: If a file or an image in it is damaged; names file and row.
    """
    total = count_rows(paths)
    images = np.empty((total, channels, image_size, image_size), dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    filled = 0
    for path in paths:
        start = filled
        for blobs, batch_labels in _labelled_batches(path, rows=ROWS_PER_BATCH):
            rows = slice(filled, filled + len(blobs))
            images[rows] = _decoded(
                blobs, path, filled - start, image_size=image_size, channels=channels
            )
            labels[rows] = batch_labels
            filled = rows.stop
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))


def _labelled_batches(path: Path, *, rows: int) -> Iterator[tuple[list[bytes | None], list[int]]]:
    with _opened(path) as file:
        image = image_column(file.schema_arrow, path)
        label = label_column(file.schema_arrow, path)
        for batch in file.iter_batches(rows, columns=[image, label]):
            labels = batch.column(label)
            if labels.null_count:
                raise UserError(str(path), f"{labels.null_count} rows have no {label}")
            yield batch.column(image).field("bytes").to_pylist(), labels.to_pylist()


def _decoded(
    blobs: list[bytes | None], path: Path, first_row: int, *, image_size: int, channels: int
) -> list[Pixels]:
    decoded: list[Pixels] = []
    for row, pixels in enumerate(decode_all(blobs, read_blob, channels=channels), first_row):
        if isinstance(pixels, UndecodableError):
            raise IntegrityError(
                str(path), f"row {row}: the image is {pixels.reason}", "fetch the file again"
            )
        height, width = pixels.shape[1:]
        if (height, width) != (image_size, image_size):
            raise UserError(
                str(path),
                f"row {row}: the image is {width}x{height} pixels",
                f"this dataset has {image_size}x{image_size}",
            )
        decoded.append(pixels)
    return decoded
