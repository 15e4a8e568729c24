"""A trial without Ray: replicates, stopping, going on, failing."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from kdci.config.params_file import load_params
from kdci.store.layout import Layout
from pipelines.searching.driver import prepare
from pipelines.searching.options import SearchOptions
from pipelines.searching.results import STOP_FILE, search_folder
from pipelines.searching.trial import (
    SearchStoppedError,
    StageEndedError,
    Trial,
    TrialFailedError,
)
from pipelines.sweeping.guarded import Guard, deciding

pytestmark = pytest.mark.slow
SCALE = "compensation.scale=loguniform(0.1, 10)"


def opened(workspace, *keys, **options):
    params = load_params(workspace.root / "params.yaml")
    layout = Layout(workspace.root, params.preset)
    _, search = prepare(workspace.root, params, SearchOptions(keys=keys, **options))
    return layout, search


def trial(layout, search, workspace, **values):
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    return Trial(layout, search, dotted, Guard(workspace.root, deciding(workspace.environment)))


def test_replicates_follow_one_another_and_the_score_is_their_mean(workspace):
    workspace.edit(grid__seeds=[0, 1])
    layout, search = opened(workspace, SCALE, seeds=[0, 1])
    points = list(trial(layout, search, workspace, compensation__scale=2.0).points())
    assert [point["steps"] for point in points] == [60, 120, 180, 240, 300, 360, 420, 480]
    assert [point["complete"] for point in points] == [False] * 7 + [True]
    assert {point["num_steps"] for point in points} == {480}
    single = {}
    for seed in (0, 1):
        layout, search = opened(workspace, SCALE, seeds=[seed], name=f"seed{seed}")
        found = list(trial(layout, search, workspace, compensation__scale=2.0).points())
        single[seed] = [point["score"] for point in found]
    assert [point["score"] for point in points[:4]] == single[0]
    assert [point["score"] for point in points[4:]] == [
        pytest.approx((single[0][-1] + score) / 2) for score in single[1]
    ]


def test_a_killed_stage_and_a_stopped_search_go_on_from_the_checkpoint(workspace):
    workspace.edit(recipes__fast__steps_per_epoch=250)
    layout, search = opened(workspace, SCALE)
    values = {"compensation__scale": 2.0}
    whole = trial(layout, opened(workspace, SCALE, name="whole")[1], workspace, **values)
    expected = [(point["steps"], point["score"]) for point in whole.points()]

    first = trial(layout, search, workspace, **values)
    points = first.points()
    assert next(points)["steps"] == 250
    (stage,) = first.layout.work.glob("work/distill@*-kdci-*/*")
    pid = json.loads((stage / "identity.json").read_text())["pid"]
    os.kill(pid, signal.SIGTERM)  # as when the worker dies: the stage saves its state
    with pytest.raises(StageEndedError, match="143"):
        list(points)
    # A slow machine has made one by the clock before.
    steps = [int(file.stem.split("-")[1]) for file in stage.glob("checkpoint-*.json")]
    assert len(steps) <= 2
    reached = max(steps)
    assert 250 <= reached < 1000
    born = (stage / "snapshot-000000250.safetensors").stat().st_mtime_ns

    second = trial(layout, search, workspace, **values)
    points = second.points()
    assert next(points)["steps"] == 250 and next(points)["steps"] == 500
    assert (stage / "snapshot-000000250.safetensors").stat().st_mtime_ns == born  # not made again
    (search_folder(layout, search.name) / STOP_FILE).touch()
    began = time.monotonic()
    with pytest.raises(SearchStoppedError):
        list(points)
    assert time.monotonic() - began < 15
    with pytest.raises(SearchStoppedError):  # nothing begins either
        list(trial(layout, search, workspace, **values).points())
    (search_folder(layout, search.name) / STOP_FILE).unlink()

    third = list(trial(layout, search, workspace, **values).points())
    assert [(point["steps"], point["score"]) for point in third] == expected
    (call,) = search.stages
    cards = [
        json.loads((each.root / call.artifact / "card.json").read_text())
        for each in (whole, second)
    ]
    assert cards[0]["content"] == cards[1]["content"]
    again = trial(layout, search, workspace, **values)  # nothing is left to run
    assert [(point["steps"], point["score"]) for point in again.points()] == expected
    assert again._process is None


def test_a_closed_trial_leaves_no_stage(workspace):
    workspace.edit(recipes__fast__steps_per_epoch=250)
    layout, search = opened(workspace, SCALE)
    run = trial(layout, search, workspace, compensation__scale=2.0)
    points = run.points()
    next(points)
    process = run._process
    assert process is not None and process.poll() is None
    points.close()
    assert process.poll() == 143


def test_what_would_fail_again_is_told_and_upstream_must_stay(workspace):
    layout, search = opened(workspace, "recipes.fast.learning_rate=loguniform(0.01, 1e30)")
    run = trial(layout, search, workspace, recipes__fast__learning_rate=1e30)
    with pytest.raises(TrialFailedError, match="distill@.*-kdci-.* ended with 5: kdci: error: "):
        list(run.points())
    workspace.edit(teacher__num_epochs=1)
    workspace.dvc("repro", "--quiet", "teacher")
    run = trial(layout, search, workspace, recipes__fast__learning_rate=0.02)
    with pytest.raises(TrialFailedError, match="has changed since the search began"):
        list(run.points())
