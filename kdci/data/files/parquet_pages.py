"""Look at the pages of a Parquet column before they are read.

A page is decompressed whole, and a value of a dictionary page is copied into every row that
names it: a kilobyte may become gigabytes. A footer does not tell, and may lie; the header of each
page, a struct in Thrift's compact protocol, tells what will be taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kdci.errors import IntegrityError

ANY_BYTES = 64 * 2**20
"""A page may become so large, whatever it takes in the file."""
MOST_SWELLING = 16
"""A larger one at most so many times what it takes: encoded images hardly shrink at all."""
FIX = "fetch the file again"
_HEADER_BYTES = (2**12, 2**24)
"""Of a header: nearly always, and at most."""
_MOST_DEPTH = 8
_END, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)
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
        header, length = _header_at(file, path, place)
        sizes = [header.get(_UNCOMPRESSED), header.get(_COMPRESSED)]
        if (
            not all(isinstance(size, int) and size >= 0 for size in sizes)
            or _num_values(header) < 0
        ):
            raise IntegrityError(str(path), f"no page at byte {place:,}", FIX)
        yield header
        place += length + header[_COMPRESSED]


def _header_at(file: IO[bytes], path: Path, place: int) -> tuple[dict[int, Any], int]:
    for most in _HEADER_BYTES:
        try:
            file.seek(place)
            compact = _Compact(file.read(most))
            return compact.struct(), compact.place
        except IndexError:
            continue  # the header is longer than what was read
        except ValueError:
            break
    raise IntegrityError(str(path), f"no page at byte {place:,}", FIX)


class _Compact:
    """Thrift's compact protocol, as far as page headers need it: integers and structs are kept.

    Args:
        data: Where a struct begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.place = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return integers and structs by the number of their field.

        Raises:
            IndexError: If the data ends before the struct does.
            ValueError: If it is no such struct.
        """
        if depth > _MOST_DEPTH:
            raise ValueError("too deep")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) & 15 != _END:
            number = number + (head >> 4) if head >> 4 else self._integer()
            # A field's truth stands in its kind, an element's in a byte of its own.
            if head & 15 not in (_TRUE, _FALSE):
                fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._skip_list(depth)
        lengths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
        if kind != _BINARY and kind not in lengths:
            raise ValueError(f"no kind {kind}")
        length = self._varint() if kind == _BINARY else lengths[kind]
        self.place += length
        return None

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        size = self._varint() if head >> 4 == 15 else head >> 4
        if size > len(self._data):
            raise ValueError("longer than it can be")
        for _ in range(size):
            self._value(head & 15, depth + 1)

    def _byte(self) -> int:
        byte = self._data[self.place]
        self.place += 1
        return byte

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number without end")

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
