from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdci.data.parquet import (
    check_labelled,
    count_rows,
    image_column,
    iter_blobs,
    label_column,
    read_labelled,
)
from kdci.errors import IntegrityError, StorageError, UserError

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
    data = read_labelled(files, image_size=32, channels=3)
    assert np.array_equal(data.images.numpy(), images.transpose(0, 3, 1, 2))
    assert data.labels.tolist() == [4, 3, 2, 1, 0]


def test_more_rows_than_one_batch(tmp_path: Path, encode_image: Encode, make_parquet: Make) -> None:
    levels = np.arange(2500)
    blobs = [encode_image(np.full((2, 2), level % 251, np.uint8)) for level in levels]
    file = make_parquet(tmp_path / "a.parquet", blobs, label=levels.tolist())
    data = read_labelled([file], image_size=2, channels=1)
    assert data.labels.tolist() == levels.tolist()
    assert data.images[:, 0, 1, 1].tolist() == (levels % 251).tolist()


@pytest.mark.parametrize("blob", [b"no image", None])
def test_an_undecodable_image_names_file_and_row(
    blob: bytes | None, tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    good = encode_image(rgb(1)[0])
    file = make_parquet(tmp_path / "a.parquet", [good] * 1100 + [blob], label=[0] * 1101)
    with pytest.raises(IntegrityError, match=r"a\.parquet: row 1100"):
        read_labelled([file], image_size=32, channels=3)
    check_labelled(file, image_size=32, channels=3)


def test_wrong_size_and_null_label_are_user_errors(
    tmp_path: Path, rgb: Rgb, encode_image: Encode, make_parquet: Make
) -> None:
    small = make_parquet(tmp_path / "a.parquet", [encode_image(rgb(1, 28)[0])], label=[1])
    for read in (check_labelled, lambda f, **kwargs: read_labelled([f], **kwargs)):
        with pytest.raises(UserError, match="row 0: the image is 28x28"):
            read(small, image_size=32, channels=3)
    null = make_parquet(tmp_path / "b.parquet", [encode_image(rgb(1)[0])], label=[None])
    with pytest.raises(UserError, match="1 rows have no label"):
        read_labelled([null], image_size=32, channels=3)


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
