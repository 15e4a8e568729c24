"""A pool chosen from several sources, through the stage that does it."""

from __future__ import annotations

import numpy as np
from PIL import Image


def test_a_mixed_open_world_is_chosen_from_and_counted(built, call):
    folder = built.root / "mine"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (folder / "13.png").write_bytes(b"no image")
    open_world = {
        "source": "mixed",
        "num_images": 0,
        "max_bad_fraction": 0.05,
        "sources": [
            {"source": "folder", "path": str(folder), "num_images": 0},
            {"source": "photographs", "num_images": 30},
        ],
    }
    built.edit(methods__dfnd__open_world=open_world, methods__dfnd__num_selected=69)
    built.build(call("substitute", "dfnd"))
    facts = built.card(call("substitute", "dfnd"))["facts"]
    assert facts["skipped"] == {"sources.0: not an image": 1}
    assert (
        facts["num_images"] + facts["num_holdout"]
        == facts["num_open_world"] + (facts["num_holdout"])
    )
    assert facts["num_images"] == facts["num_open_world"]
    assert facts["num_images"] + facts["num_holdout"] == 69


def test_too_many_bad_files_refuse_the_pool(built, call, capsys):
    folder = built.root / "mine"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.png").write_bytes(b"no image")
    open_world = {"source": "folder", "path": str(folder), "num_images": 0}
    built.edit(methods__dfnd__open_world=open_world, methods__dfnd__num_selected=20)
    before = built.files()
    assert built.run(call("substitute", "dfnd")) == 2
    error = capsys.readouterr().err
    assert f"{folder}: 40 of 40 images can not be used (40 not an image)" in error
    assert built.files() == before
