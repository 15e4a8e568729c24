"""The blocks of docs/data.md are valid params, and what it says of names is so."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from kdci.config.catalog import CUSTOM, DATASETS
from kdci.config.data import Data
from kdci.config.open_world import OpenWorld
from kdci.data.datasets.download import SOURCES
from kdci.data.files.decoding import MAX_BYTES, MAX_LABELLED_PIXELS, MAX_PIXELS
from kdci.data.files.image_files import IN_MEMORY_BYTES, MAX_THREADS
from kdci.data.files.listing import OTHER, OUTSIDE, SUFFIXES, UNREADABLE
from tests.project_code import ROOT

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def blocks() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL):
        found |= YAML(typ="safe", pure=True).load(block)
    return found


def test_blocks_are_valid_params(blocks: dict[str, Any]) -> None:
    data = Data.model_validate(blocks["data"])
    assert data.spec.class_names == ("cat", "dog", "hare")
    open_world = OpenWorld.model_validate(blocks["open_world"])
    assert [part.source for part in open_world.parts] == ["folder", "parquet", "photographs"]
    assert set(blocks) == {"data", "open_world"}


def test_every_dataset_has_its_row() -> None:
    rows = re.findall(r"^\| ((?:`[a-z0-9-]+`(?:, )?)+) \|", TEXT, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row)}
    assert {*DATASETS, CUSTOM} <= named


def test_reasons_and_bounds_are_the_codes() -> None:
    for reason in (OTHER, OUTSIDE, UNREADABLE, "not an image", "damaged", "too large", "missing"):
        assert f"| `{reason}` |" in TEXT
    assert all(f"`{suffix}`" in TEXT for suffix in SUFFIXES)
    assert (MAX_PIXELS, MAX_LABELLED_PIXELS) == (25_000_000, 80_000_000)
    assert (MAX_BYTES, IN_MEMORY_BYTES, MAX_THREADS) == (64 * 2**20, 2 * 2**30, 16)
    assert re.findall(r"kdci download (\w+) data", TEXT) == [*SOURCES]
