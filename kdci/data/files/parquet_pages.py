"""Look at the pages of a Parquet column before they are read.

A page is decompressed whole, and a value of a dictionary page is copied into every row that
names it: a kilobyte may become gigabytes. A footer does not tell, and may lie; the header of each
page, a struct in Thrift's compact protocol, tells what will be taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import SEEK_CUR
from pathlib import Path
from typing import IO, Any

from kdci.errors import IntegrityError

ANY_BYTES = 64 * 2**20
"""A page may become so large, whatever it takes in the file."""
MOST_SWELLING = 16
"""A larger one at most so many times what it takes: encoded images hardly shrink at all."""
FIX = "fetch the file again"
_MOST_HEADER_BYTES = 2**24
_MOST_DEPTH = 8
_END, _TRUTHS, _INTEGERS, _BINARY, _STRUCT = 0, (1, 2), (4, 5, 6), 8, 12
_UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY, _DATA_2 = 2, 3, 5, 7, 8


def look_at_chunk(path: Path, column: Any) -> tuple[int, int]:
    """Read the headers of all pages of a column in a row group.

    Args:
        path: The Parquet file.
        column: pyarrow's ``ColumnChunkMetaData``; where it says the pages lie.

    Returns:
        Number of cells, nulls among them, and the bytes that a cell may take: the whole
        dictionary, or the mean of some page.

    Raises:
        IntegrityError: If there are no such pages, or one becomes far larger than it is.
        OSError: If the file can not be read.
    """
    start = column.data_page_offset
    if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    num_values = cell_bytes = 0
    with path.open("rb") as file:
        for header in _headers(file, path, start, start + column.total_compressed_size):
            size = header[_UNCOMPRESSED]
            if size > max(ANY_BYTES, MOST_SWELLING * header[_COMPRESSED]):
                what = f"a page of {header[_COMPRESSED]:,} bytes becomes {size:,}"
                raise IntegrityError(str(path), what, FIX)
            values = _num_values(header)
            num_values += values
            cell_bytes = max(cell_bytes, size // max(1, values))
            if _DICTIONARY in header:
                cell_bytes = max(cell_bytes, size)
    return num_values, cell_bytes


def _num_values(header: Mapping[int, Any]) -> int:
    """Return the number of cells of a data page; a dictionary's values are none."""
    data = header.get(_DATA, header.get(_DATA_2, {}))
    return int(data.get(1, 0)) if isinstance(data, dict) else 0


def _headers(file: IO[bytes], path: Path, start: int, end: int) -> Iterator[dict[int, Any]]:
    place = start
    while place < end:
        file.seek(place)
        try:
            header = _struct(file, place + _MOST_HEADER_BYTES)
            sizes = [header.get(_UNCOMPRESSED), header.get(_COMPRESSED), _num_values(header)]
            if not all(isinstance(size, int) and size >= 0 for size in sizes):
                raise ValueError("no sizes")
        except ValueError:
            raise IntegrityError(str(path), f"no page at byte {place:,}", FIX) from None
        place = file.tell() + header[_COMPRESSED]
        yield header


def _struct(file: IO[bytes], end: int, depth: int = 0) -> dict[int, Any]:
    """Read a struct in Thrift's compact protocol, as far as page headers need it.

    Args:
        file: Stands where the struct begins, then behind it.
        end: Where it has to have ended.
        depth: How many structs it lies in.

    Returns:
        Integers and structs by the number of their field.

    Raises:
        ValueError: If there is no such struct.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := _byte(file)) & 15 != _END:
        if depth > _MOST_DEPTH or file.tell() > end:
            raise ValueError("no end")
        kind = head & 15
        number = number + (head >> 4) if head >> 4 else _integer(file)
        if kind in _INTEGERS:
            fields[number] = _integer(file)
        elif kind == _STRUCT:
            fields[number] = _struct(file, end, depth + 1)
        elif kind == _BINARY:  # of statistics
            file.seek(min(_varint(file), _MOST_HEADER_BYTES), SEEK_CUR)
        elif kind not in _TRUTHS:  # which stand in their kind
            raise ValueError(f"no kind {kind}")
    return fields


def _byte(file: IO[bytes]) -> int:
    byte = file.read(1)
    if not byte:
        raise ValueError("the file ends")
    return byte[0]


def _varint(file: IO[bytes]) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a number without end")


def _integer(file: IO[bytes]) -> int:
    number = _varint(file)
    return (number >> 1) ^ -(number & 1)
