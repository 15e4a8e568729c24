"""Methods measured for real, in this process: a little of their own code, on noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdci.config.deconfounding import ShiftedPools
from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.store.artifacts import save_tensors
from pipelines.checking.estimating.machine import Machine
from pipelines.checking.estimating.subjects import Backbone, Pair
from pipelines.params.presets import FOLDER

WRN = "wrn-10-1"
CANDIDATES = {"mosaick": 10**5, "dfnd": 10**5}
ARMS = ("vanilla", "kdci", "kdci_stratified", "logit_adjusted")


@pytest.fixture
def params() -> Params:
    """One whose pools would take hours."""
    params = load_params(FOLDER / "digits-smoke.yaml")
    changes: dict[str, dict[str, Any]] = {
        "dafl": {"num_steps": 10**6, "sample_every": 100, "skip_steps": 1000},
        "fast": {"warmup_calls": 10**5, "num_steps": 100},
        "cmi": {"warmup_calls": 10**5, "num_steps": 100},
        "deepinv": {"warmup_calls": 10**4, "num_steps": 1000, "low_resolution_steps": 500},
        "mosaick": {"warmup_steps": 10**6},
        "dfnd": {},
        "noise": {"num_images": 10**6},
    }
    blocks = {
        name: block.model_copy(update=changes[name]) for name, block in params.methods.items()
    }
    for name in CANDIDATES:
        world = blocks[name].open_world.model_copy(update={"num_images": 10**5})  # type: ignore[attr-defined]
        blocks[name] = blocks[name].model_copy(update={"open_world": world})
    return params.model_copy(update={"methods": type(params.methods)(blocks)})


def machine(params: Params, folder: Path) -> Machine:
    (folder / "work").mkdir()
    return Machine(params, folder / "work", folder / "formats")


@pytest.mark.parametrize(
    "method",
    [
        "dafl",
        "fast",
        "dfnd",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cmi", "deepinv", "mosaick")),
        "noise",
    ],
)
def test_hours_are_told_in_seconds(
    params: Params, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.checking.estimating.timing.LONG_ENOUGH", 0.05)
    candidates = CANDIDATES.get(method, 0)
    pair = Pair(WRN, WRN, method, ARMS if method == "fast" else ARMS[:1], candidates)
    found = pair.measure(machine(params, tmp_path), (1.0, 0.1))
    whole, tenth = found["pool"][1.0], found["pool"][0.1]
    assert whole > (100 if method not in ("dfnd", "noise") else 1)
    # What makes images is scaled by the budget; what chooses or draws them is not.
    assert tenth == pytest.approx(whole / 10, rel=0.2) or method in ("mosaick", "dfnd", "noise")
    assert (found["refresh"][1.0] > 1e-3) == (method in ("fast", "cmi", "deepinv", "mosaick"))
    assert all(seconds > 0 for seconds in found["steps"].values())
    assert found["steps"].keys() == {*pair.arms}
    assert 10**8 < found["pool_peak"] <= found["peak"]
    assert not found["is_made_up"]


def test_a_method_that_refreshes_at_each_step_is_timed_without(
    params: Params, tmp_path: Path
) -> None:
    block = params.methods["mosaick"].model_copy(
        update={"distillation_steps_per_game_step": 1, "warmup_steps": 2}
    )
    often = params.model_copy(
        update={"methods": type(params.methods)({**params.methods, "mosaick": block})}
    )
    pair = Pair(WRN, WRN, "mosaick", ARMS[:1], candidates=300)
    found = pair.measure(machine(often, tmp_path), (1.0,))
    assert 0 < found["steps"]["vanilla"] < 10


def test_an_open_world_that_is_missing_is_made_up(params: Params, tmp_path: Path) -> None:
    block = params.methods["dfnd"]
    missing = {"source": "folder", "path": str(tmp_path / "none"), "num_images": 0}
    world = block.open_world.model_copy(update=missing)  # type: ignore[attr-defined]
    blocks = {**params.methods, "dfnd": block.model_copy(update={"open_world": world})}
    there = params.model_copy(update={"methods": type(params.methods)(blocks)})
    pair = Pair(WRN, WRN, "dfnd", (), candidates=1000)
    found = pair.measure(machine(there, tmp_path), (1.0,))
    assert found["is_made_up"] and found["pool"][1.0] > 0


def test_a_pool_with_a_known_shift_is_as_idle_as_it_will_be(params: Params, tmp_path: Path) -> None:
    grid = params.grid.model_copy(update={"shifts": ("tail",)})
    shift = ShiftedPools(base="fast", num_images=64)
    shifted = params.model_copy(update={"grid": grid, "shift": shift})
    found = Pair(WRN, WRN, "tail", ARMS[:1], 0).measure(machine(shifted, tmp_path), (1.0,))
    assert (found["pool"], found["refresh"]) == ({1.0: 0.0}, {1.0: 0.0})
    assert found["steps"]["vanilla"] > 0


def test_a_backbone_is_measured(params: Params, tmp_path: Path) -> None:
    there = machine(params, tmp_path)
    found = Backbone(WRN, trained=True).measure(there, ())
    assert found["predict"] and found["train"] and found["predict"] < found["train"]
    save_tensors(tmp_path / "weights", there.student(WRN).state_dict())
    header = 8 + int.from_bytes((tmp_path / "weights").read_bytes()[:8], "little")
    assert found["state"] == (tmp_path / "weights").stat().st_size - header
