"""Parquet files whose footer lies, or that become far larger than they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdci.config.catalog import DATASETS
from kdci.data.files.decoding import MAX_BYTES
from kdci.data.files.parquet import iter_blobs, read_labelled
from kdci.data.files.parquet_pages import look_at_chunk
from kdci.data.open_world.candidates import PoolPart
from kdci.errors import IntegrityError, KdciError
from tests.kdci.data.open_world._whole_pool import load_whole
from tests.project_code import ROOT

Encode = Callable[..., bytes]
Make = Callable[..., Path]
SPEC = DATASETS["cifar10"]
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCRIPT = """
import json, re, sys
from pathlib import Path
from kdci.data.open_world.candidates import PoolPart
from tests.kdci.data.open_world._whole_pool import load_whole
from kdci.errors import KdciError

def peak():  # of this program alone: getrusage begins with what its parent had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def load(path):
    return load_whole([PoolPart("parquet", Path(path))], image_size=8, channels=3, seed=0,
                           max_bad_fraction=0.999)

load(sys.argv[1])
before, told = peak(), None
try:
    load(sys.argv[2])
except KdciError as error:
    told = str(error)
rise = peak() - before
print(json.dumps({"rise_kb": rise, "told": told}))
"""


def write(path: Path, blobs: list[bytes], **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": pa.array([{"bytes": b, "path": None} for b in blobs], type=CELL)})
    pq.write_table(table, path, compression="zstd", **settings)
    return path


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_tell_what_pyarrow_wrote(use_dictionary: bool, version: str, tmp_path: Path) -> None:
    blobs = [bytes([number % 256]) * (500 + number) for number in range(3000)]
    settings = {"data_page_version": version, "data_page_size": 10_000, "row_group_size": 1100}
    file = write(tmp_path / "a.parquet", blobs, use_dictionary=use_dictionary, **settings)
    footer = pq.ParquetFile(file).metadata
    counts = []
    for number in range(footer.num_row_groups):
        for index in range(2):
            cells, cell_bytes = look_at_chunk(file, footer.row_group(number).column(index))
            counts.append(cells)
            assert cell_bytes >= (500 if index == 0 else 0)
    assert counts == [1100, 1100, 1100, 1100, 800, 800]
    assert list(iter_blobs([file])) == blobs


def varint(number: int) -> bytes:
    """An integer in Thrift's compact protocol."""
    number, out = number << 1, b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def with_rows(file: Path, rows: int, stated: int, *, in_groups: bool) -> None:
    """Replace the number of rows in the footer, of the file and maybe of its row group."""
    content = file.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], content[-8 - length : -8]
    # The file's own count is followed by the list of row groups; a group's by a field of it.
    whole = b"\x16" + varint(rows) + b"\x19\x1c"
    assert footer.count(whole) == 1
    footer = footer.replace(whole, b"\x16" + varint(stated) + b"\x19\x1c")
    if in_groups:
        place = footer.rindex(b"\x16" + varint(rows))
        end = place + 1 + len(varint(rows))
        footer = footer[:place] + b"\x16" + varint(stated) + footer[end:]
    file.write_bytes(body + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    metadata = pq.ParquetFile(file).metadata
    assert metadata.num_rows == stated
    assert metadata.row_group(0).num_rows == (stated if in_groups else rows)


@pytest.mark.parametrize("in_groups", [False, True])
@pytest.mark.parametrize("stated", [0, 150, 299, 301, 5000, 2**40])
def test_a_footer_that_tells_of_other_rows_is_an_integrity_error(
    stated: int, in_groups: bool, tmp_path: Path, encode_image: Encode, make_parquet: Make
) -> None:
    """Fewer rows left some unread, more left memory as it was in the place of images."""
    blobs = [encode_image(np.full((32, 32, 3), level % 250, np.uint8)) for level in range(300)]
    file = make_parquet(tmp_path / "a.parquet", blobs, label=[0] * 300)
    with_rows(file, 300, stated, in_groups=in_groups)
    part = PoolPart("parquet", tmp_path)
    for read in (
        lambda: read_labelled([file], SPEC),
        lambda: load_whole([part], image_size=8, channels=1, seed=0),
    ):
        with pytest.raises(KdciError, match=r"footer tells of|no rows") as caught:
            read()
        assert len(caught.value.lines()) == 1
        if stated:
            assert isinstance(caught.value, IntegrityError)


def test_a_label_beyond_all_integers_is_an_integrity_error(
    tmp_path: Path, encode_image: Encode
) -> None:
    blob = encode_image(np.zeros((32, 32, 3), np.uint8))
    cells = pa.array([{"bytes": blob, "path": None}], type=CELL)
    table = pa.table({"img": cells, "label": pa.array([2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(IntegrityError, match=r"a\.parquet: .*9223372036854775808") as caught:
        read_labelled([tmp_path / "a.parquet"], SPEC)
    assert len(caught.value.lines()) == 1


def rise_of(tmp_path: Path, file: Path, encode_image: Encode) -> dict[str, object]:
    """Return by how much memory grows while a pool is read, and what is told."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    warm = write(tmp_path / "warm" / "a.parquet", [encode_image(noise)] * 64)
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(warm.parent), str(file.parent)],
        capture_output=True,
        check=True,
        timeout=120,
        cwd=ROOT,
    )
    found: dict[str, object] = json.loads(out.stdout)
    return found


@pytest.mark.slow
def test_identical_cells_of_a_dictionary_do_not_fill_the_memory(
    tmp_path: Path, encode_image: Encode
) -> None:
    """256 cells of 4 MiB, a gigabyte in a file of a kilobyte."""
    good = encode_image(np.zeros((8, 8, 3), np.uint8))
    blobs = [good + bytes(4 * 2**20)] * 256
    file = write(tmp_path / "b" / "a.parquet", blobs, dictionary_pagesize_limit=2**26)
    assert file.stat().st_size < 2000
    found = rise_of(tmp_path, file, encode_image)
    assert found["told"] is None
    assert int(str(found["rise_kb"])) < 250 * 1024


@pytest.mark.slow
def test_a_page_that_swells_is_refused(tmp_path: Path, encode_image: Encode) -> None:
    file = write(tmp_path / "b" / "a.parquet", [bytes(MAX_BYTES // 4)] * 8, use_dictionary=False)
    assert file.stat().st_size < 2**16
    found = rise_of(tmp_path, file, encode_image)
    assert "a page of " in str(found["told"]) and "becomes" in str(found["told"])
    assert int(str(found["rise_kb"])) < 50 * 1024


def test_damaged_pages_are_integrity_errors(tmp_path: Path, encode_image: Encode) -> None:
    """Whatever a byte of a page header becomes: read, or one line."""
    blobs = [encode_image(np.full((4, 4, 3), level, np.uint8)) for level in range(20)]
    file = write(tmp_path / "a.parquet", blobs)
    content, refused = file.read_bytes(), 0
    for place in range(4, 60):
        for value in (0, 0xFF, content[place] ^ 0x10):
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                list(iter_blobs([file]))
            except IntegrityError as error:
                refused += 1
                assert len(error.lines()) == 1
    assert refused > 50
