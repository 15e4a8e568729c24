from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdci.config.catalog import DATASETS
from kdci.data.files.parquet import (
    check_labelled,
    count_rows,
    image_column,
    iter_blobs,
    label_column,
    read_labelled,
)
from kdci.errors import IntegrityError, StorageError, UserError

SPEC = DATASETS["cifar10"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
Encode = Callable[..., bytes]
Make = Callable[..., Path]
Rgb = Callable[..., np.ndarray]


@pytest.mark.parametrize(
    ("columns", "image", "label"),
    [
        ([("img", IMAGE), ("label", pa.int64())], "img", "label"),
        ([("id", pa.int32()), ("fine_label", pa.int64()), ("x", IMAGE)], "x", "fine_label"),
        ([("n", pa.uint8()), ("image", IMAGE), ("thumb", IMAGE)], "image", "n"),
        ([("pic", pa.struct([("bytes", pa.large_binary())])), ("y", pa.int16())], "pic", "y"),
    ],
)
def test_columns_are_found_from_the_schema(
    columns: list[tuple[str, pa.DataType]], image: str, label: str
) -> None:
    schema = pa.schema(columns)
    assert image_column(schema, Path("f")) == image
    assert label_column(schema, Path("f")) == label


def test_ambiguous_or_absent_columns_are_user_errors() -> None:
    path = Path("f.parquet")
    with pytest.raises(UserError, match="f.parquet: no image column"):
        image_column(pa.schema([("bytes", pa.binary()), ("p", pa.struct([]))]), path)
    with pytest.raises(UserError, match="several image columns: a, b"):
        image_column(pa.schema([("a", IMAGE), ("b", IMAGE)]), path)
    with pytest.raises(UserError, match="several label columns: a, b"):
        label_column(pa.schema([("a", pa.int8()), ("b", pa.int8())]), path)
    with pytest.raises(UserError, match="no label column"):
        label_column(pa.schema([("label", pa.string())]), path)


def test_rows_of_several_files_in_order(
    tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    images = rgb(5)
    blobs = [encode_image(image) for image in images]
    files = [
        make_parquet(tmp_path / "a.parquet", blobs[:2], label=[4, 3]),
        make_parquet(tmp_path / "b.parquet", blobs[2:], image="image", labels=[2, 1, 0]),
    ]
    assert count_rows(files) == 5
    assert list(iter_blobs(files)) == blobs
    data = read_labelled(files, SPEC)
    assert np.array_equal(data.images[:].numpy(), images.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("rows", [range(7, 25), range(25), [0], [24], [3, 4, 9, 10, 23], []])
def test_some_rows_of_several_files(
    rows: Sequence[int], tmp_path: Path, make_parquet: Callable[..., Path]
) -> None:
    blobs = [bytes([number]) * 9 for number in range(25)]
    files = [
        make_parquet(tmp_path / f"{start}-{end}.parquet", blobs[start:end])
        for start, end in ((0, 4), (4, 4), (4, 17), (17, 25))
    ]
    for file in files:  # in groups of three rows
        pq.write_table(pq.read_table(file), file, row_group_size=3)
    assert list(iter_blobs(files, rows)) == [blobs[row] for row in rows]


def test_row_groups_without_such_rows_are_not_read(
    tmp_path: Path, make_parquet: Callable[..., Path]
) -> None:
    blobs = [bytes([number]) * 5000 for number in range(20)]
    file = make_parquet(tmp_path / "a.parquet", blobs)
    pq.write_table(pq.read_table(file), file, row_group_size=5, use_dictionary=False)
    footer = pq.ParquetFile(file).metadata
    content = bytearray(file.read_bytes())
    for number in (0, 2):  # the pages of two groups are gone
        column = footer.row_group(number).column(0)
        start = column.data_page_offset
        content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)
    assert list(iter_blobs([file], [5, 9, 15])) == [blobs[row] for row in (5, 9, 15)]
    with pytest.raises(IntegrityError):
        list(iter_blobs([file], [4, 5]))


def test_more_rows_than_one_batch(tmp_path: Path, encode_image: Encode, make_parquet: Make) -> None:
    levels = np.arange(2500)
    blobs = [encode_image(np.full((2, 2), level % 251, np.uint8)) for level in levels]
    file = make_parquet(tmp_path / "a.parquet", blobs, label=levels.tolist())
    data = read_labelled([file], replace(SPEC, image_size=2, channels=1))
    assert data.labels.tolist() == levels.tolist()
    assert data.images[:][:, 0, 1, 1].tolist() == (levels % 251).tolist()


@pytest.mark.parametrize("blob", [b"no image", None])
def test_an_undecodable_image_names_file_and_row(
    blob: bytes | None, tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    good = encode_image(rgb(1)[0])
    file = make_parquet(tmp_path / "a.parquet", [good] * 1100 + [blob], label=[0] * 1101)
    with pytest.raises(IntegrityError, match=r"a\.parquet: row 1100"):
        read_labelled([file], SPEC)
    check_labelled(file, SPEC)


def test_wrong_size_and_null_label_are_user_errors(
    tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    small = make_parquet(tmp_path / "a.parquet", [encode_image(rgb(1, 28)[0])], label=[1])
    for read in (check_labelled, lambda file, spec: read_labelled([file], spec)):
        with pytest.raises(UserError, match="row 0: the image is 28x28"):
            read(small, SPEC)
    null = make_parquet(tmp_path / "b.parquet", [encode_image(rgb(1)[0])], label=[None])
    with pytest.raises(UserError, match="1 rows have no label"):
        read_labelled([null], SPEC)


def test_damaged_files_are_integrity_errors(
    tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    whole = make_parquet(tmp_path / "a.parquet", [encode_image(rgb(1)[0])], label=[1]).read_bytes()
    for content in (b"", b"PAR1", b"x" * 999, whole[:-20], whole[: len(whole) // 2]):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"bad\.parquet"):
            count_rows([tmp_path / "bad.parquet"])
    with pytest.raises(StorageError):
        count_rows([tmp_path / "absent.parquet"])
