"""The process that keeps MLflow's record: of a run's end, of dead stores, and of its own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.tracking import recorder as recorder_module
from pipelines.tracking.recorder import Record, Recorder
from tests.pipelines._servers import RunProject, free_port, until, warnings_of
from tests.project_code import ROOT

STAGES = 12
POPEN = subprocess.Popen


def recording(monkeypatch: pytest.MonkeyPatch, program: str) -> Recorder:
    """Return a recorder whose process is a program of the test's."""

    def start(command: Any, **settings: Any) -> Any:
        assert command[1:] == ["-m", "pipelines.tracking.recorder"]
        return POPEN([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(recorder_module.subprocess, "Popen", start)
    return Recorder(ROOT)


def test_the_record_is_the_last_line_and_is_the_same_when_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = """import sys; sys.stdin.read(); print("noise"); print('{"text": "done"}')"""
    with recording(monkeypatch, program) as recorder:
        first = recorder.finish()
        assert first == Record(text="done")
        assert recorder.finish() is first
    assert recorder.finish() is first


def test_a_recorder_that_dies_or_hangs_leaves_no_record_and_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with recording(monkeypatch, "raise SystemExit(1)") as recorder:
        assert recorder.finish() is None
    monkeypatch.setattr(recorder_module, "FINISH_SECONDS", 0.5)
    with recording(monkeypatch, "import time; time.sleep(60)") as recorder:
        assert recorder._process is not None
        process = psutil.Process(recorder._process.pid)
        began = time.monotonic()
        assert recorder.finish() is None
        assert time.monotonic() - began < 10
    assert not process.is_running()


def test_it_has_a_session_of_its_own_and_ends_with_the_run_that_started_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Ctrl-C on the terminal is the run's; the end of stdin tells it, however the run ends."""
    with recording(monkeypatch, "import sys; sys.stdin.read()") as recorder:
        assert recorder._process is not None
        pid = recorder._process.pid
        assert os.getsid(pid) == pid
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


# -- with MLflow -----------------------------------------------------------------------------------


def runs_in(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, max_results=1000))


@pytest.mark.slow
def test_a_dead_mlflow_costs_a_line_and_sync_makes_up_for_it(
    up_to_date: RunProject, tmp_path: Path
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    done = up_to_date.run_through("--no-prefect", MLFLOW_TRACKING_URI=dead)
    seconds = time.monotonic() - began
    print(f"everything cached, MLflow dead: {seconds:.1f} s")
    assert seconds < 90
    told = [line for line in (done.stdout + done.stderr).splitlines() if "kdci sync" in line]
    assert len(told) == 1, done.stdout + done.stderr
    assert "12 stages: 12 cached" in done.stdout

    store = f"sqlite:///{tmp_path}/mlflow.db"
    synced = up_to_date.kdci("sync", MLFLOW_TRACKING_URI=store)
    assert synced.returncode == 0, synced.stdout + synced.stderr
    runs = runs_in(store)
    tags = [run.data.tags for run in runs]
    stages = {stage for one in tags if (stage := one.get("dvc.stage"))}
    assert len(stages) == STAGES
    places = [(one["mlflow.runName"], one.get("mlflow.parentRunId")) for one in tags]
    assert len(set(places)) == len(places)  # each once
    number = len(runs)
    assert up_to_date.kdci("sync", MLFLOW_TRACKING_URI=store).returncode == 0
    assert len(runs_in(store)) == number


@pytest.mark.slow
def test_a_run_is_recorded_while_it_goes_on_and_a_killed_run_leaves_no_recorder(
    up_to_date: RunProject, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    done = up_to_date.run_through("--no-prefect", MLFLOW_TRACKING_URI=store)
    assert warnings_of(done) == []
    assert "runs and" in done.stdout
    assert runs_in(store)

    up_to_date.edit(recipes__dfnd__num_epochs=4, recipes__dfnd__steps_per_epoch=2000)
    process = up_to_date.start("run", "--no-prefect", MLFLOW_TRACKING_URI=store)
    until(up_to_date.stages_alive, 60, "a stage is at work")
    tree = psutil.Process(process.pid).children(recursive=True)
    assert any("pipelines.tracking.recorder" in one.cmdline() for one in tree)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert psutil.wait_procs(tree, timeout=60)[1] == []
