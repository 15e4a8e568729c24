"""Processes whose runner is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipelines.checking.diagnosis.doctor import repaired
from pipelines.checking.diagnosis.processes import check_processes
from tests.pipelines.checking.diagnosis._findings import lines

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
STARTER = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen(sys.argv[1:])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


@contextmanager
def started(root: Path, *command: str, **settings: str) -> Iterator[tuple[int, int]]:
    """Start a process that starts another; yield the ids of both and end them."""
    (root / "stages").mkdir(exist_ok=True)
    (root / "stages" / "__init__.py").touch()
    (root / "stages" / "sleeper.py").write_text(SLEEPER)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command],
        cwd=root,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    child = 0
    try:
        for line in iter(starter.stdout.readline, ""):
            child = child or (int(line) if line.strip().isdigit() else 0)
            if child and line.strip() == "up":
                break
        yield starter.pid, child
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()
        if child and psutil.pid_exists(child):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(child))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


STAGE = (sys.executable, "-m", "stages.sleeper", "--teacher", "a")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"DVC_STAGE": "sleeper@a"}])
def test_an_orphaned_stage_is_named_and_left_alone(tmp_path: Path, settings: dict) -> None:
    with started(tmp_path, *STAGE, **settings) as (starter, stage):
        if not settings:
            (told,) = lines(check_processes(tmp_path))
            assert told == f"ok       at work here: stages.sleeper --teacher a ({stage})"
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(stage).ppid() != starter)
        (told,) = lines(repaired(check_processes(tmp_path)))
        assert told == (
            f"problem  stages.sleeper --teacher a (process {stage}) is at work here, and what "
            f"started it is gone  (kill {stage}; it saves its state first)"
        )
        assert psutil.pid_exists(stage)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        assert lines(check_processes(elsewhere)) == ["ok       no process is left over here"]


def test_a_server_that_was_left_is_a_warning(tmp_path: Path) -> None:
    program = tmp_path / "mlflow"
    program.write_text(SLEEPER)
    command = (sys.executable, str(program), "server", "--port", "0")
    with started(tmp_path, *command) as (starter, server):
        assert lines(check_processes(tmp_path)) == [
            f"ok       at work here: mlflow server ({server})"
        ]
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(server).ppid() != starter)
        (told,) = lines(check_processes(tmp_path))
        assert told.startswith(f"warning  mlflow server (process {server}) is at work here")
        assert f"(kill {server}, unless it is meant to stay)" in told


def test_a_command_that_was_left_to_itself_is_none(tmp_path: Path) -> None:
    """`nohup kdci run &`, and the terminal closed."""
    program = tmp_path / "kdci"
    program.write_text(SLEEPER)
    with started(tmp_path, sys.executable, str(program), "run") as (starter, command):
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(command).ppid() != starter)
        assert lines(check_processes(tmp_path)) == ["ok       no process is left over here"]


def test_a_stage_of_a_living_runner_is_no_orphan(tmp_path: Path) -> None:
    """DVC's own line of processes: the runner, DVC, a shell, the stage in its own session."""
    program = tmp_path / "dvc"
    program.write_text(
        "import subprocess, sys\nsubprocess.Popen(sys.argv[1:], start_new_session=True).wait()\n"
    )
    command = (sys.executable, str(program), *STAGE)
    with started(tmp_path, *command, DVC_STAGE="sleeper@a") as (starter, dvc):
        (stage,) = psutil.Process(dvc).children()
        at_work = f"ok       at work here: stages.sleeper --teacher a ({stage.pid})"
        try:
            assert lines(check_processes(tmp_path)) == [at_work]
            os.kill(starter, signal.SIGKILL)
            wait_for(lambda: psutil.Process(dvc).ppid() != starter)
            runner, told = lines(check_processes(tmp_path))
            assert f"(process {dvc}) is at work here" in runner
            assert runner.startswith("warning  dvc ")
            assert told == at_work
        finally:
            stage.kill()
