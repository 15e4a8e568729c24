"""One stage as a process, with real DVC: how it ends, is tried again, and is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipelines.running import stage_process
from pipelines.running.stage_process import Outcome, StageProcess, State
from tests.project_code import ROOT

SECONDS = 30.0

PROGRAM = '''
"""A stage: does what params.yaml says."""
import signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
from stages.signals import StopFlag, die_with_parent

told = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())
stop = StopFlag()
stop.install()
die_with_parent(stop)
attempts = Path("attempts.txt")
with attempts.open("a") as file:
    file.write("x")
print("working on", told["text"], flush=True)
if told["wait"]:
    if told["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("pid.txt.tmp").write_text(str(__import__("os").getpid()))
    Path("pid.txt.tmp").rename("pid.txt")
    while stop.signal_number is None or told["stubborn"]:
        time.sleep(0.01)
    time.sleep(0.3)  # it takes a while to save a state
    Path("saved.txt").write_text("state")
    print("saved", flush=True)
    sys.exit(128 + stop.signal_number)
if told["code"] and attempts.stat().st_size < told["until"]:
    print("some output first")
    print("kdci: error: loss: is not finite (lower learning_rate)", file=sys.stderr)
    sys.exit(told["code"])
Path("out.txt").write_text(told["text"])
'''

DVC_YAML = """
stages:
  work:
    cmd: python work.py
    params: [text]
    outs: [out.txt]
"""


class Toy:
    """A project of one stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        (root / ".dvc").mkdir(parents=True)
        (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        (root / "dvc.yaml").write_text(DVC_YAML)
        (root / "work.py").write_text(PROGRAM)
        self.set()

    def set(self, **told: object) -> None:
        whole = {"text": "a", "wait": False, "stubborn": False, "code": 0, "until": 99, **told}
        (self.root / "params.yaml").write_text(json.dumps(whole))

    def process(self, hear: Callable[[str], None] | None = None) -> StageProcess:
        return StageProcess(self.root, "work", hear or self.lines.append)

    def run(self) -> Outcome:
        self.lines = []
        return self.process().run()

    @property
    def num_attempts(self) -> int:
        return len((self.root / "attempts.txt").read_text())

    def await_stage(self) -> psutil.Process:
        """Wait until the stage is at work and return its process."""
        file = self.root / "pid.txt"
        deadline = time.monotonic() + SECONDS
        while not file.exists():
            assert time.monotonic() < deadline, "the stage did not begin"
            time.sleep(0.02)
        return psutil.Process(int(file.read_text()))


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still does something: one that is only not yet waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(stage_process, "RETRY_DELAYS", (0.05, 0.1))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return Toy(tmp_path / "toy")


def test_completed_then_cached_then_restored(toy: Toy) -> None:
    before = time.time()
    first = toy.run()
    assert (first.state, first.exit_code, first.message) == (State.completed, 0, "")
    assert first.stage == "work"
    assert before <= first.started <= before + 1
    assert 0 < first.seconds <= time.time() - before
    assert toy.lines == ["working on a"]  # and none of DVC's own chatter

    assert toy.run().state is State.cached
    assert toy.lines == []

    toy.set(text="b")
    assert toy.run().state is State.completed
    toy.set(text="a")
    back = toy.run()
    assert back.state is State.restored
    assert "run cache" in back.message
    assert (toy.root / "out.txt").read_text() == "a"
    assert toy.num_attempts == 2
    assert first.has_result and back.has_result


def test_failed_with_the_stages_own_error_and_code(toy: Toy) -> None:
    toy.set(code=5)
    outcome = toy.run()
    assert outcome.state is State.failed
    assert outcome.exit_code == 5
    assert outcome.message == "kdci: error: loss: is not finite (lower learning_rate)"
    assert not outcome.has_result
    assert "some output first" in toy.lines
    assert toy.num_attempts == 1


def test_failed_without_an_error_line_tells_the_last_lines(toy: Toy) -> None:
    (toy.root / "work.py").write_text(
        "for i in range(20): print('line', i)\nraise ValueError('broken')"
    )
    outcome = toy.run()
    assert (outcome.state, outcome.exit_code) == (State.failed, 1)
    lines = outcome.message.splitlines()
    assert len(lines) <= stage_process.TAIL_LINES
    assert any(line == "ValueError: broken" for line in lines)
    assert lines[0] != "line 0"


def test_failed_before_the_stage_ran_tells_what_dvc_said(toy: Toy) -> None:
    (toy.root / "dvc.yaml").write_text(DVC_YAML + "    deps: [absent.csv]\n")
    outcome = toy.run()
    assert outcome.state is State.failed
    assert "absent.csv" in outcome.message
    assert not (toy.root / "attempts.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("code", [4, 6])
def test_tried_again_where_the_disk_or_a_lock_was_in_the_way(toy: Toy, code: int) -> None:
    toy.set(code=code, until=2)
    outcome = toy.run()
    assert outcome.state is State.completed
    assert toy.num_attempts == 2
    assert toy.lines.count("a lock or the disk was in the way; trying again in 0.05 s") == 1


def test_given_up_after_as_many_attempts_as_there_are_delays(toy: Toy) -> None:
    toy.set(code=4)
    outcome = toy.run()
    assert (outcome.state, outcome.exit_code) == (State.failed, 4)
    assert toy.num_attempts == 1 + len(stage_process.RETRY_DELAYS)


def test_a_mistake_is_not_tried_again(toy: Toy) -> None:
    toy.set(code=2)
    assert toy.run().exit_code == 2
    assert toy.num_attempts == 1


def test_tried_again_where_dvc_says_that_somebody_else_writes(toy: Toy) -> None:
    """DVC's own lock of the output, held by a live process until DVC has refused once."""
    lock = toy.root / ".dvc/tmp/rwlock"
    toy.run()
    held = {"pid": os.getpid(), "cmd": "another dvc"}
    lock.write_text(json.dumps({"write": {str(toy.root / "out.txt"): held}, "read": {}}))
    toy.set(text="b")

    def hear(line: str) -> None:
        toy.lines.append(line)
        if "trying again" in line:
            lock.unlink()

    outcome = toy.process(hear).run()
    assert outcome.state is State.completed, toy.lines
    assert any("is busy" in line for line in toy.lines)
    assert toy.num_attempts == 2  # the one that was refused did not come so far


@pytest.fixture(params=["/bin/bash", "/bin/sh"])
def shell(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell that DVC starts the stage with: sh may stay in between, bash does not."""
    if not Path(request.param).exists():
        pytest.skip(f"no {request.param}")
    monkeypatch.setenv("SHELL", request.param)


@pytest.mark.slow
@pytest.mark.usefixtures("shell")
def test_stopped_at_work_it_saves_its_state_and_is_gone_before_run_returns(toy: Toy) -> None:
    toy.set(wait=True)
    process = toy.process()
    outcomes: list[Outcome] = []
    runner = threading.Thread(target=lambda: outcomes.append(process.run()), daemon=True)
    runner.start()
    stage = toy.await_stage()
    chain = [stage, *stage.parents()]
    of_run = chain[: chain.index(psutil.Process())]
    assert len(of_run) >= 2  # DVC lies in between
    process.stop()
    runner.join(SECONDS)
    (outcome,) = outcomes
    assert (toy.root / "saved.txt").read_text() == "state"
    # It has let go of everything by then; the kernel may take a moment more to bury it.
    deadline = time.monotonic() + 1
    while any(is_alive(one) for one in of_run):
        assert time.monotonic() < deadline, of_run
        time.sleep(0.01)
    assert (outcome.state, outcome.exit_code) == (State.stopped, 143)
    assert toy.lines[-1] == "saved"

    toy.set()  # what DVC left behind is not in the way of the next run
    assert toy.run().state is State.completed


def test_a_stage_that_does_not_leave_is_killed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_process, "GRACE_SECONDS", 0.5)
    toy.set(wait=True, stubborn=True)
    process = toy.process()
    outcomes: list[Outcome] = []
    runner = threading.Thread(target=lambda: outcomes.append(process.run()), daemon=True)
    runner.start()
    stage = toy.await_stage()
    process.stop()
    runner.join(SECONDS)
    deadline = time.monotonic() + 5
    while is_alive(stage):  # the kernel may take a moment to bury it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert outcomes[0].state is State.stopped


def test_stopped_between_two_attempts_it_is_not_tried_again(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_process, "RETRY_DELAYS", (60.0,))
    toy.set(code=4)
    process: StageProcess

    def hear(line: str) -> None:
        if "trying again" in line:
            process.stop()

    process = toy.process(hear)
    outcome = process.run()
    assert (outcome.state, outcome.exit_code) == (State.stopped, 143)
    assert outcome.seconds < 30
    assert toy.num_attempts == 1


def test_stopped_before_it_began_nothing_is_started(toy: Toy) -> None:
    process = toy.process()
    process.stop()
    assert process.run().state is State.stopped
    assert not (toy.root / "attempts.txt").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
@pytest.mark.usefixtures("shell")
def test_a_killed_runner_leaves_no_stage(toy: Toy) -> None:
    toy.set(wait=True)
    program = f"""
        from pathlib import Path
        from pipelines.running.stage_process import StageProcess
        StageProcess(Path({str(toy.root)!r}), "work", print).run()
    """
    runner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT)
    try:
        stage = toy.await_stage()
        left = [*psutil.Process(runner.pid).children(recursive=True)]
        assert stage in left
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []
    assert (toy.root / "saved.txt").exists()  # and it saved its state
