"""A folder a class of the user's own, from its teacher to its evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kdci.data.files import image_files

NAMES = ("ant", "bee", "cow")


@pytest.fixture
def own(fresh):
    """The smoke experiment on 3 classes that differ in brightness; photographs of any size."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 9)):
        for label, name in enumerate(NAMES):
            folder = fresh.root / "own" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(18, 40, 2)
                pixels = rng.integers(80 * label, 80 * label + 80, (height, width), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    facts = {"num_classes": 3, "image_size": 16, "channels": 1, "mean": [0.5], "std": [0.3]}
    data = {"name": "custom", "path": str(fresh.root / "own"), "test": "test", "facts": facts}
    return fresh.edit(data=data, grid__methods=["fast"])


@pytest.mark.slow
def test_images_in_files_make_the_same_students_as_those_in_memory(own, call, monkeypatch):
    stages = [one for one in own.calls() if one.stage != "report"]  # which tells wall times
    contents = []
    for num_bytes in (2**30, 0):
        monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", num_bytes)
        own.build(*stages)
        contents.append([own.content(one) for one in stages])
        rows = json.loads((own.artifact(call("evaluate")) / "cells.json").read_text())
        assert {row["variant"] for row in rows} == {"vanilla", "kdci"}
        assert own.card(call("teacher"))["facts"]["accuracy"] is not None
        (own.root / "artifacts").rename(own.root / f"artifacts-{num_bytes}")
    assert contents[0] == contents[1]


@pytest.mark.slow
def test_a_damaged_test_image_ends_the_evaluation_with_its_path(own, call, capsys):
    own.build(*[one for one in own.calls() if one.stage not in ("evaluate", "report")])
    file = own.root / "own" / "val" / "cow" / "3.png"
    file.write_bytes(file.read_bytes()[:99])
    assert own.run(call("evaluate")) == 3
    assert f"{file}: the image is damaged" in capsys.readouterr().err
