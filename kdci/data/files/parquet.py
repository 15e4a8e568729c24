"""Images in Hugging Face Parquet files: a struct column whose ``bytes`` hold the image."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.datasets.labelled import LabelledImages
from kdci.data.files.decoding import Pixels, UndecodableError, decode_labelled
from kdci.data.files.parquet_pages import FIX, look_at_chunk
from kdci.errors import IntegrityError, StorageError, UserError

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
MOST_ROWS_PER_BYTE = 4096
"""Of a file: what rows of one and the same image do not reach."""
BATCH_BYTES = 32 * 2**20
"""Of cells that are in memory at once, about, unless one alone takes more."""
MAX_ROWS = 64
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
            str(path), f"not a readable Parquet file: {_one_line(error)}", FIX
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
        IntegrityError: If a file is not Parquet, or its footer contradicts itself.
    """
    total = 0
    for path in paths:
        with _opened(path) as file:
            total += _footer_rows(file.metadata, path)
    return total


def _footer_rows(footer: Any, path: Path) -> int:
    """Return the number of rows of a file, compared with what may be compared without reading."""
    stated = int(footer.num_rows)
    groups = [int(footer.row_group(g).num_rows) for g in range(footer.num_row_groups)]
    if min(groups, default=0) < 0 or stated != sum(groups):
        what = f"its footer tells of {stated:,} rows, its row groups of {sum(groups):,}"
        raise IntegrityError(str(path), what, FIX)
    num_bytes = path.stat().st_size
    if stated > MOST_ROWS_PER_BYTE * num_bytes:
        what = f"its footer tells of {stated:,} rows in {num_bytes:,} bytes"
        raise IntegrityError(str(path), what, FIX)
    return stated


def iter_blobs(paths: Sequence[Path], rows: Sequence[int] | None = None) -> Iterator[bytes | None]:
    """Yield the encoded image of every row, file by file; ``None`` where the cell is null.

    Args:
        paths: Parquet files.
        rows: Which rows, counted over all files, ascending, such as a ``range``; None: all of
            them. Row groups with none of these are not read.

    Raises:
        UserError: If a file has no image column.
        IntegrityError: If a file is damaged.
    """
    first = 0
    for path in paths:
        with _opened(path) as file:
            name = image_column(file.schema_arrow, path)
            end = first + _footer_rows(file.metadata, path)
            wanted = range(first, end) if rows is None else _between(rows, first, end)
            if len(wanted):
                for start, batch in _batches(file, path, [f"{name}.bytes"], wanted, first):
                    cells = batch.column(name).field("bytes")
                    for row in _between(wanted, start, start + len(batch)):
                        yield cells[row - start].as_py()
            first = end


def _between(rows: Sequence[int], start: int, end: int) -> Sequence[int]:
    """Return those of the ascending ``rows`` that lie in [start, end)."""
    return rows[bisect_left(rows, start) : bisect_left(rows, end)]


def _batches(
    file: Any,
    path: Path,
    columns: Sequence[str],
    wanted: Sequence[int] | None = None,
    first: int = 0,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches, as many rows at once as memory is meant to hold, each with its first row.

    Row groups with none of the ``wanted`` rows are left out; these count from the file's ``first``.
    Columns are of leaves, with the names of the structs that they lie in.
    """
    _footer_rows(file.metadata, path)
    end = first
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        start, end = end, end + group.num_rows
        if group.num_rows == 0 and not any(group.column(c).num_values for c in _of(group)):
            continue  # such a group has no pages to look at
        if wanted is not None and not _between(wanted, start, end):
            continue
        rows = _look_at_group(group, path, number, columns)
        seen = 0
        for batch in file.iter_batches(rows, row_groups=[number], columns=list(columns)):
            seen += len(batch)
            yield start + seen - len(batch), batch
        if seen != group.num_rows:
            raise _other_number(path, number, group.num_rows, seen)


def _of(group: Any) -> range:
    return range(group.num_columns)


def _look_at_group(group: Any, path: Path, number: int, columns: Sequence[str]) -> int:
    """Return how many rows of a row group are read at once, after a look at all its pages."""
    rows = []
    for index in _of(group):
        column = group.column(index)
        if column.path_in_schema in columns:
            num_values, cell_bytes = look_at_chunk(path, column)
            if num_values != group.num_rows:
                raise _other_number(path, number, group.num_rows, num_values)
            rows.append(BATCH_BYTES // max(1, cell_bytes))
    return max(1, min(MAX_ROWS, *rows))


def _other_number(path: Path, group: int, stated: int, found: int) -> IntegrityError:
    what = f"its footer tells of {stated:,} rows in row group {group}, its pages hold {found:,}"
    return IntegrityError(str(path), what, FIX)


def read_blob(blob: bytes | None) -> bytes:
    """Return the bytes of a cell.

    Raises:
        UndecodableError: If the cell is null.
    """
    if blob is None:
        raise UndecodableError("missing")
    return blob


def check_labelled(path: Path, spec: DatasetSpec) -> None:
    """Check columns, class names and the first image of one file, without reading the rest.

    Raises:
        UserError: If a column is missing, the first image has another size, or the file itself
            says that it has other classes.
        IntegrityError: If the file or its first image is damaged.
    """
    for blobs, _ in _labelled_batches(path, spec):
        _decoded(blobs[:1], path, 0, spec)
        break


def read_labelled(paths: Sequence[Path], spec: DatasetSpec) -> LabelledImages:
    """Decode every row of the files, in order.

    Args:
        paths: Parquet files with the same kind of columns.
        spec: Says size and channels; images are converted. Where it has a ``square_share``,
            images of any size are cut square and resized; else all must have that size.

    Returns:
        All images and labels; labels are not yet compared with the number of classes.

    Raises:
        UserError: If a column is missing, a label is null, an image has another size, or the
            images would not fit in this machine's memory.
        IntegrityError: If a file or an image in it is damaged; names file and row.
    """
    total = count_rows(paths)
    shape = (total, spec.channels, spec.image_size, spec.image_size)
    unpack = "unpack them into a folder a class: files are decoded when they are needed"
    require_memory(math.prod(shape), str(paths[0].parent), unpack)
    images = np.empty(shape, dtype=np.uint8)
    labels = np.empty(total, dtype=np.int64)
    filled = 0
    for path in paths:
        start = filled
        for blobs, batch_labels in _labelled_batches(path, spec):
            rows = slice(filled, filled + len(blobs))
            images[rows] = _decoded(blobs, path, filled - start, spec)
            labels[rows] = batch_labels
            filled = rows.stop
    return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))


def require_memory(num_bytes: int, subject: str, fix: str) -> None:
    """Refuse to take more memory than this machine has.

    Raises:
        UserError: With the subject and the mend that were given.
    """
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if num_bytes > here:
        what = f"its images take {num_bytes / 2**30:.0f} GiB of memory, here are {here / 2**30:.0f}"
        raise UserError(subject, what, fix)


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Return the classes in label order where the file says them, as Hugging Face's do."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _require_classes(names: list[str] | None, spec: DatasetSpec, path: Path) -> None:
    if names is not None and len(names) != spec.num_classes:
        what = f"its labels have {len(names)} classes, {spec.name} has {spec.num_classes}"
        raise UserError(str(path), what, "give the number of classes of this dataset")
    if names is not None and spec.name == CUSTOM and spec.stated_names:
        for label, (found, stated) in enumerate(zip(names, spec.class_names, strict=True)):
            if found != stated:
                what = f"label {label} is {found}, but data.facts.class_names has {stated}"
                raise UserError(str(path), what, "state the classes in label order")


def _labelled_batches(
    path: Path, spec: DatasetSpec
) -> Iterator[tuple[list[bytes | None], npt.NDArray[np.int64]]]:
    with _opened(path) as file:
        image = image_column(file.schema_arrow, path)
        label = label_column(file.schema_arrow, path)
        _require_classes(_class_names(file.schema_arrow, label), spec, path)
        for _, batch in _batches(file, path, [f"{image}.bytes", label]):
            labels = batch.column(label)
            if labels.null_count:
                raise UserError(str(path), f"{labels.null_count} rows have no {label}")
            # A label beyond int64 is an ArrowException here.
            numbers = labels.cast(pa.int64()).to_numpy()
            yield batch.column(image).field("bytes").to_pylist(), numbers


def _decoded(
    blobs: list[bytes | None], path: Path, first_row: int, spec: DatasetSpec
) -> list[Pixels]:
    def told(place: int) -> tuple[str, str]:
        return str(path), f"row {first_row + place}: "

    return list(decode_labelled(blobs, read_blob, spec, told=told, fix=FIX))
