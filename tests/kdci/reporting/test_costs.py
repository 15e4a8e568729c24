from __future__ import annotations

import json

import pytest

from kdci.reporting.costs import cost_of, known_number, read_timing

CARD = {
    "params": {"recipes.fast": {"num_epochs": 200, "steps_per_epoch": 400}, "budget": 0.001},
    "facts": {"num_steps": 80, "batch_size": 64},
    "runtime": {"device": "cuda:0", "device_name": "NVIDIA H100"},
}


def test_an_epoch_is_that_of_the_recipe_however_short_the_budget_made_it():
    cost = cost_of(CARD, {"loop_seconds": 20.0, "peak_memory_bytes": 3 * 2**20})
    assert cost.seconds_per_epoch == pytest.approx(400 * 20.0 / 80)
    assert (cost.memory_mb, cost.on_gpu) == (3.0, False)
    assert cost.hardware == "cuda:0 (NVIDIA H100)"


def test_the_memory_of_a_gpu_is_taken_where_there_is_one():
    timing = {"loop_seconds": 1, "peak_memory_bytes": 2**30, "peak_gpu_memory_bytes": 5 * 2**20}
    assert cost_of(CARD, timing).memory_mb == 5.0
    assert cost_of(CARD, timing).on_gpu


def test_what_is_not_known_is_null():
    assert cost_of(CARD, {}) is None
    assert cost_of({**CARD, "params": {}}, {"loop_seconds": 1.0}) is None
    assert cost_of(CARD, {"loop_seconds": 1.0}).memory_mb is None
    assert known_number({"loop_seconds": "soon"}, "loop_seconds") is None


def test_a_damaged_file_of_times_is_as_none(tmp_path):
    file = tmp_path / "seed0.json"
    assert read_timing(file) == {}
    for text in ("{", "[1]", "\xff"):
        file.write_text(text)
        assert read_timing(file) == {}
    file.write_text(json.dumps({"seconds": 2}))
    assert read_timing(file) == {"seconds": 2}
