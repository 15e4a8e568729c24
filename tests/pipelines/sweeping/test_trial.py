"""An attempt at a stage: what it runs, what it tells, and how it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from kdci.graph.cells import renew_cells
from kdci.graph.standing import differences
from pipelines.sweeping import attempts
from pipelines.sweeping.attempts import log_of, prepare_folder, stop_file
from pipelines.sweeping.guarded import Guard, command, last_words
from pipelines.sweeping.trial import AttemptFailedError, execute
from tests.project_code import ROOT

TEACHER = "teacher@wrn-10-1"
CALL = ("stages.teacher", "wrn-10-1")
STANDS_IN = """
import signal, sys, time
if sys.argv[1] == "sleep":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("ready", flush=True)
    time.sleep(60)
print("some words")
print("kdci: error: x: is wrong (mend it)", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


class Plan(NamedTuple):
    stage: str
    call: tuple[str, ...]
    folder: Path
    guard: Guard


@pytest.fixture
def plan(fresh):
    """The plan of a stage, or of a module that stands in for one."""
    (fresh.root / "stands_in.py").write_text(STANDS_IN)
    folder = prepare_folder(fresh.layout)
    renew_cells(fresh.graph)
    path = os.pathsep.join([str(ROOT), *sys.path])

    def of(*call: str) -> Plan:
        settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return Plan(TEACHER, call, folder, Guard(fresh.root, settings))

    return of


def silent(metrics: dict[str, float]) -> None:
    pass


def history(plan):
    return attempts.read_history(plan.folder, plan.stage)


def test_the_sweeps_folder_is_this_users_alone(plan):
    assert plan(*CALL).folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_stage_makes_its_result_once(plan):
    plan = plan(*CALL)
    assert execute(*plan, {"ray.trial_id": "t"}, silent) == 0
    assert differences(plan.guard.root, [TEACHER]) == {TEACHER: None}
    assert (history(plan).exit_code, history(plan).links) == (0, {"ray.trial_id": "t"})
    log_of(plan.folder, plan.stage).unlink()
    assert execute(*plan, {}, silent) == 0
    assert not log_of(plan.folder, plan.stage).exists(), "run again"


@pytest.mark.slow
@pytest.mark.parametrize("code", [1, 2, 3, 5])
def test_a_failure_that_would_come_again_is_told_and_final(plan, code):
    plan = plan("stands_in", str(code))
    assert execute(*plan, {}, silent) == code
    assert history(plan).message == "kdci: error: x: is wrong (mend it)"


@pytest.mark.parametrize("code", [4, 6, 143])
def test_a_failure_that_may_pass_is_left_to_another_attempt(plan, code):
    plan = plan("stands_in", str(code))
    with pytest.raises(AttemptFailedError, match="is wrong"):
        execute(*plan, {}, silent)
    assert history(plan).exit_code == code


def test_the_stop_file_ends_a_stage_and_keeps_others_from_starting(plan):
    plan = plan("stands_in", "sleep")
    log, request = log_of(plan.folder, plan.stage), stop_file(plan.folder)

    def ask() -> None:
        while not (log.exists() and log.read_text()):
            time.sleep(0.05)
        request.touch()

    asking = threading.Thread(target=ask)
    asking.start()
    began = time.monotonic()
    assert execute(*plan, {}, silent) == 143
    assert time.monotonic() - began < 20
    asking.join()
    log.unlink()
    assert execute(*plan, {}, silent) == 143
    assert not log.exists()


@pytest.mark.slow
def test_the_newest_metrics_are_reported(plan, monkeypatch):
    monkeypatch.setattr("pipelines.sweeping.trial.POLL_SECONDS", 0.05)
    monkeypatch.setattr("pipelines.sweeping.trial.REPORT_SECONDS", 0.0)
    plan, reports = plan(*CALL), []
    assert execute(*plan, {}, reports.append) == 0
    assert {"step", "loss"} <= set(reports[0])


def test_last_words_are_the_stages_own(tmp_path):
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_text("\n \n")
    assert last_words(log) == ""
    log.write_text("one\n\n  two \n")
    assert last_words(log) == "two"
    log.write_text("kdci: error: a: b\nlater\n")
    assert last_words(log) == "kdci: error: a: b"


# -- a stage does not outlive its worker -----------------------------------------------------------


def test_a_guarded_module_gets_its_arguments_and_exit_code(tmp_path):
    (tmp_path / "told.py").write_text("import sys; print(sys.argv[1:], __name__); sys.exit(3)")
    done = subprocess.run(
        command(("told", "--a", "b c"), gpu_share=0.0), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (3, "['--a', 'b c'] __main__\n")


def test_a_guarded_module_is_not_begun_without_its_parent(tmp_path):
    (tmp_path / "told.py").write_text("print('begun')")
    orphan = command(("told",), gpu_share=0.0)
    orphan[3] = "1"  # the parent's process id
    done = subprocess.run(orphan, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells by signal")
def test_a_guarded_module_ends_with_its_parent(tmp_path):
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    worker = (
        "import subprocess, time\n"
        "from pipelines.sweeping.guarded import command\n"
        "print(subprocess.Popen(command(('sleeps',), gpu_share=0.0)).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", worker], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child.wait(timeout=20)


def test_a_share_of_a_gpu_caps_the_memory(monkeypatch, tmp_path):
    import torch

    from pipelines.sweeping import guarded

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    monkeypatch.setattr(guarded, "die_with_parent", lambda stop: None)  # of pytest itself
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nothing_to_do.py").touch()
    for share in ("0.5", "0.0"):
        guarded.main([str(os.getppid()), share, "nothing_to_do"])
    assert asked == [0.5]
