"""Scores on Ray are those of this process, bit for bit, and what fails is told in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdci.data.open_world.scoring_engine import find_engine, local_engine
from kdci.errors import UserError
from pipelines.sweeping.scoring import ray_engine as engine_module
from pipelines.sweeping.scoring.ray_engine import ray_engine
from tests.project_code import ROOT

KEY = "methods.dfnd.open_world.engine"


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"{KEY}: ray is not installed .*kdci\[sweep\]"):
        ray_engine(KEY)


def test_it_is_found_by_its_name() -> None:
    pytest.importorskip("ray")
    assert callable(find_engine("ray", KEY))
    assert find_engine("local", KEY) is local_engine
    with pytest.raises(UserError, match=f"{KEY}: other is not among the installed engines"):
        find_engine("other", KEY)


def on_ray(what: str, folder: Path, **variables: str) -> Any:
    """Run ``on_ray.py`` with no Ray but the one that ``variables`` name."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    out = subprocess.run(
        [sys.executable, Path(__file__).with_name("on_ray.py"), what, folder],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


def write_pool(folder: Path) -> None:
    """Write 150 images, two of which are none."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(150):
        file = folder / f"{number:03}.png"
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(file)
    for number in (4, 77):
        (folder / f"{number:03}.png").write_bytes(b"no")


@pytest.mark.slow
def test_chooses_as_this_process_does_bit_for_bit(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool")
    equal, (first, second, third, last, state) = on_ray("equal", tmp_path)
    assert equal
    assert [report["scored"] for report in (first, second, third)] == [70, 140, 178]
    assert last["bank"] == 40 and len(state["positions"]) == 40
    assert state["skipped"] == {"sources.0: not an image": 2}


@pytest.mark.slow
def test_so_do_the_nodes_of_a_cluster(two_ray_nodes: tuple[str, str], tmp_path: Path) -> None:
    write_pool(tmp_path / "pool")
    address, token = two_ray_nodes
    variables = {"RAY_ADDRESS": address, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}
    equal, _ = on_ray("equal", tmp_path, **variables)
    assert equal
    assert len(list(tmp_path.glob("node-*"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("dying", "the.key: ray failed: ActorDiedError"),
        ("failing", "the.key: ray failed: RuntimeError: no memory left for a convolution"),
        ("killed", "the.key: ray failed: "),
        ("no room", "the.key: no node of the cluster has 1 cores for it"),
    ],
)
def test_what_fails_on_ray_is_told_in_one_line(what: str, word: str, tmp_path: Path) -> None:
    (line,) = on_ray(what, tmp_path)
    assert line.startswith(f"kdci: error: {word}"), line
