from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file


@pytest.fixture(params=["fast", "dfnd"])
def method(request):
    return request.param


def test_last_snapshot_is_the_student(smoke_project, call):
    folder = smoke_project.artifact(call("kdci"))
    snapshots = smoke_project.card(call("kdci"))["facts"]["snapshots"]
    assert [step for step, _ in snapshots] == [6, 12]
    last = load_file(folder / snapshots[-1][1])
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert last[f"student/{name}"].equal(tensor)
    for name, tensor in load_file(folder / "compensation.safetensors").items():
        assert last[f"compensation/{name}"].equal(tensor)


def test_one_metrics_line_an_epoch_for_both_arms(smoke_project, call, method):
    for variant in ("vanilla", "kdci"):
        folder = smoke_project.artifact(call(variant, method))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [(row["epoch"], row["step"]) for row in rows] == [(1, 6), (2, 12)]
        assert ("lambda_max" in rows[0]) == (variant == "kdci")
        assert (folder / "compensation.safetensors").exists() == (variant == "kdci")


def test_both_arms_start_alike_and_train_apart(smoke_project, call, method):
    vanilla = smoke_project.card(call("vanilla", method))
    kdci = smoke_project.card(call("kdci", method))
    assert vanilla["seeds"] == kdci["seeds"]
    assert vanilla["parents"]["pool"] == kdci["parents"]["pool"]
    assert vanilla["files"]["model.safetensors"] != kdci["files"]["model.safetensors"]


def test_bank_grows_only_where_the_method_makes_images(smoke_project, call, method):
    path = smoke_project.layout.pool("wrn-10-1", method, 0) / "images.npy"
    made = {"fast": 2 * 16, "dfnd": 0}[method]  # a call an epoch
    facts = smoke_project.card(call("kdci", method))["facts"]
    assert facts["num_images"] == len(np.load(path)) + made


def test_vanilla_needs_no_dictionary(built, call, method):
    shutil.rmtree(built.layout.artifacts / "dictionaries")
    expected = built.content(call("vanilla", method))
    built.build(call("vanilla", method))
    assert built.content(call("vanilla", method)) == expected
    assert built.run(call("kdci", method)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["vanilla", "kdci"])
def test_same_seed_same_bytes_another_seed_other_bytes(built, call, method, variant):
    this = call(variant, method)
    expected = built.content(this)
    built.build(this)
    assert built.content(this) == expected
    other = call(variant, method, seed=1)
    built.edit(grid__seeds=[0, 1]).build(other)
    files = [built.card(c)["files"]["model.safetensors"]["sha256"] for c in (this, other)]
    assert files[0] != files[1]
    assert built.content(this) == expected


def test_names_of_the_classes_go_with_the_student(smoke_project, call) -> None:
    for stage in ("vanilla", "kdci"):
        facts = smoke_project.card(call(stage))["facts"]
        assert facts["class_names"] == list(smoke_project.params.data.spec.class_names)
