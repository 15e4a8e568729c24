"""Fixtures in the exact on-disk layouts that users have."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.project_code import ROOT

Encode = Callable[..., bytes]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path, blobs: Sequence[bytes | None], image: str = "img", **columns: Sequence[int | None]
) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": blob, "path": None} for blob in blobs], type=kind)
    table = {image: cells} | {name: pa.array(v, pa.int64()) for name, v in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="session")
def encode_image() -> Encode:
    return encode


@pytest.fixture(scope="session")
def make_parquet() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture
def rgb() -> Callable[..., np.ndarray]:
    """Random (N, side, side, 3) images."""

    def make(num: int, side: int = 32, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the full CIFAR-10 and open-world Parquet files, if this machine has it."""
    named = os.environ.get("KDCI_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "cifar10").is_dir():
        pytest.skip(f"no real data at {folder}; set KDCI_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def make_folders() -> Callable[..., Path]:
    """Write a folder a class: ``make(folder, {"cat": [pixels, ...]}, kind="PNG", below="")``."""

    def make(
        folder: Path,
        classes: Mapping[str, Sequence[np.ndarray]],
        kind: str = "PNG",
        below: str = "",
    ) -> Path:
        for name, images in classes.items():
            place = folder / name / below
            place.mkdir(parents=True, exist_ok=True)
            for number, pixels in enumerate(images):
                suffix = "JPEG" if kind == "JPEG" else kind.lower()
                (place / f"{name}_{number}.{suffix}").write_bytes(encode(pixels, kind))
        return folder

    return make
