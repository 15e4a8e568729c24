"""Searches with a real Ray: early stopping, promotion, and whatever may be killed on the way."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import stat
import time

import psutil
import pytest

from kdci.config.params_file import load_params
from kdci.store.layout import Layout
from pipelines.running.workspace import is_held
from pipelines.searching.driver import prepare
from pipelines.searching.options import SearchOptions
from pipelines.searching.results import read_trials, search_folder, trial_folder
from pipelines.searching.trial import Trial
from pipelines.sweeping.guarded import Guard, deciding

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "wanted"
SPACE = """\
compensation:
  scale: loguniform(0.1, 10)
dictionary.num_prototypes: int(2, 8)
recipes.fast.learning_rate: loguniform(0.001, 0.5)
"""


def layout_of(workspace):
    return Layout(workspace.root, load_params(workspace.root / "params.yaml").preset)


def wait_for(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def held(workspace):
    return [lock for lock in workspace.root.glob(".kdci/searches/*/trials/*/.kdci/locks/*.lock")
            if is_held(lock)]  # fmt: skip


def test_a_promoted_trial_gives_the_promised_number(workspace):
    """Six trials, early stopping; the winner; `dvc repro`: the same number, the same bits."""
    (workspace.root / "space.yaml").write_text(SPACE)
    options = ("--search", "space.yaml", "--trials", "6", "--name", NAME, "--max-concurrent", "2")
    done = workspace.kdci("sweep", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    layout = layout_of(workspace)
    best = winner(layout, read_trials(layout, NAME))
    assert best.name in done.stdout and f"kdci promote {NAME}" in done.stdout
    assert set(json.loads(workspace.dvc("status", "--json"))) == {"cells"}  # as it was

    before = (workspace.root / "params.yaml").read_text()
    dry = workspace.kdci("promote", NAME, "--dry-run")
    assert dry.returncode == 0 and (workspace.root / "params.yaml").read_text() == before
    done = workspace.kdci("promote", NAME)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"promised: agreement_backbone {best.score}" in done.stdout
    require_comments(before, (workspace.root / "params.yaml").read_text())
    ran = set(re.findall(r"Running stage '(\S+)'", workspace.dvc("repro"))) - {"cells"}
    (told,) = re.findall(r"^`dvc repro` runs (.*)$", done.stdout, re.MULTILINE)
    assert best.stages[-1] in ran and ran <= set(told.split(", "))
    require_promised(layout, best)


def winner(layout, records):
    """Check the records of a search with early stopping and return the best one."""
    assert len(records) == 6
    stopped = [record for record in records if record.status == "stopped"]
    complete = [record for record in records if record.status == "complete"]
    assert stopped and complete and len(stopped) + len(complete) == 6
    for record in records:
        assert record.steps == record.curve[-1][0] == 60 * len(record.curve)
        assert (record.steps == 240) == (record.status == "complete")
    table = json.loads((search_folder(layout, NAME) / "results.json").read_text())
    best = next(record for record in records if record.name == table["best"])
    assert best.score == max(record.score for record in complete)
    return best


def require_comments(before, after):
    """Only values of the searched keys differ."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    changed = [(old, new) for old, new in pairs if old != new]
    assert 1 <= len(changed) <= 3
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in changed)


def require_promised(layout, best):
    """The official evaluation has the trial's curve, the official student its bits."""
    folder = layout.artifacts / "evaluations/wrn-10-1/wrn-10-1/fast"
    rows = json.loads((folder / "cells.json").read_text())
    row = next(row for row in rows if row["variant"] == "kdci")
    assert row["agreement_backbone"] == best.score
    curves = json.loads((folder / "curves.json").read_text())
    points = next(curve["points"] for curve in curves if curve["variant"] == "kdci")
    assert [(point["step"], point["agreement_backbone"]) for point in points] == best.curve
    (place,) = best.students
    root = trial_folder(layout, NAME, best.trial_id)
    assert content(root, place) == content(layout.root, place)


def content(root, place):
    return json.loads((root / place / "card.json").read_text())["content"]


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


COMMAND = (
    *("sweep", "--space", "compensation.scale=loguniform(0.1, 10)", "--name", NAME),
    *("--trials", "3", "--scheduler", "none", "--max-concurrent", "2"),
)


def test_killed_worker_killed_driver_and_ctrl_c(workspace, tmp_path):
    """The same command goes on each time; the end is that of a search that nothing happened to."""
    workspace.edit(recipes__fast__steps_per_epoch=250)
    layout = layout_of(workspace)
    first = kill_a_worker_then_stop(workspace, layout)
    replace_pickles(search_folder(layout, NAME) / "tune", Evil(tmp_path / "opened"))
    kill_the_driver(workspace)

    done = workspace.kdci(*COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "opened").exists()
    records = read_trials(layout, NAME)
    assert [record.status for record in records] == ["complete"] * 3
    assert [record.number for record in records] == [0, 1, 2]
    for record in records:  # what was finished was not run again
        earlier = first.get(record.trial_id)
        if earlier is not None and earlier.is_finished:
            assert earlier == record
    require_undisturbed(workspace, layout, records)

    again = workspace.kdci(*COMMAND)  # nothing is left to do: no Ray is started
    assert again.returncode == 0 and "3 of them known already" in again.stdout
    other = workspace.kdci(*COMMAND, "--search-seed", "1")
    assert other.returncode == 2 and "was begun with another seed" in other.stderr


def kill_a_worker_then_stop(workspace, layout):
    """The trial of a killed worker starts again; Ctrl-C saves states and leaves nothing behind."""
    snapshots = ".kdci/searches/*/trials/*/.kdci/work/distill@*-kdci-*/*/snapshot-*0250.safetensors"
    driver = workspace.start(*COMMAND)
    wait_for(lambda: list(workspace.root.glob(snapshots)))
    workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if is_worker(p)]
    assert workers
    workers[0].kill()
    wait_for(lambda: len([r for r in read_trials(layout, NAME) if r.is_finished]) >= 2)
    wait_for(lambda: len(held(workspace)) >= 1)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, said
    assert "the same command goes on" in said and "interrupted" in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == [] and held(workspace) == []
    records = read_trials(layout, NAME)
    assert {record.status for record in records} == {"complete", "running"}
    return {record.trial_id: record for record in records}


def replace_pickles(storage, evil):
    """What Ray Tune may find of an earlier run is replaced by what must not be opened."""
    assert stat.S_IMODE(storage.stat().st_mode) == 0o700
    data = pickle.dumps(evil)
    files = list(storage.rglob("*.pkl"))
    assert files
    for file in [*files, storage / "trials" / "tuner.pkl"]:
        file.write_bytes(data)


def kill_the_driver(workspace):
    """Without its driver no stage goes on."""
    driver = workspace.start(*COMMAND)
    wait_for(lambda: held(workspace))
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    wait_for(lambda: not held(workspace), seconds=30)
    _, alive = psutil.wait_procs(family, timeout=90)  # Ray's own agents take their time
    assert alive == []


def require_undisturbed(workspace, layout, records):
    """The values are those that an undisturbed search asks for, the students those it makes."""
    params = load_params(workspace.root / "params.yaml")
    keys = ("compensation.scale=loguniform(0.1, 10)",)
    options = SearchOptions(keys=keys, scheduler="none", name="undisturbed")
    space, search = prepare(workspace.root, params, options)
    assert [record.values for record in records] == asked(search, space, 3)
    for record in records:
        guard = Guard(workspace.root, deciding(workspace.environment))
        trial = Trial(layout, search, record.values, guard)
        points = [(point["steps"], point["score"]) for point in trial.points()]
        assert points == record.curve
        (place,) = record.students
        theirs = content(trial_folder(layout, NAME, record.trial_id), place)
        assert content(trial.root, place) == theirs


def is_worker(process):
    try:
        return process.cmdline()[:1] and process.cmdline()[0].startswith("ray::") and bool(
            process.children()
        )  # fmt: skip
    except psutil.Error:
        return False


def asked(search, space, count):
    from pipelines.searching.searcher import DistinctSearcher

    searcher = DistinctSearcher(search, space, [])
    return [searcher.suggest(str(index))["values"] for index in range(count)]


def test_a_failed_trial_does_not_end_the_search_and_neither_does_a_small_space(workspace):
    rates = "recipes.fast.learning_rate=choice(0.05, 1e+30)"
    done = workspace.kdci("sweep", "--space", rates, "--trials", "5", "--name", NAME)
    assert done.returncode == 0, done.stdout + done.stderr
    records = read_trials(layout_of(workspace), NAME)
    assert sorted(record.status for record in records) == ["complete", "failed"]
    (failed,) = [record for record in records if record.status == "failed"]
    assert "ended with 5" in failed.error and failed.error in done.stdout
    refused = workspace.kdci("promote", failed.name)
    assert refused.returncode == 2 and "failed: distill@" in refused.stderr


def test_a_workspace_in_use_is_refused(workspace):
    from pipelines.running.workspace import only_runner

    with only_runner(layout_of(workspace), "kdci run"):
        for command in (("sweep", "--space", "compensation.scale=uniform(1, 2)"), ("promote", "x")):
            refused = workspace.kdci(*command)
            assert refused.returncode == 6 and "kdci run, process" in refused.stderr
