"""One runner a workspace: the second is refused, and a killed one is in nobody's way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from kdci.errors import BusyError
from kdci.store.layout import Layout
from pipelines.running import workspace
from pipelines.running.workspace import is_held, only_runner, stages_at_work

HOLD_RUNNER = """
import sys, time
from pathlib import Path
from kdci.store.layout import Layout
from pipelines.running.workspace import only_runner
with only_runner(Layout(Path(sys.argv[1]), "p"), "kdci run"):
    print("held", flush=True)
    time.sleep(60)
"""
HOLD_STAGE = """
import os, sys, time
from pathlib import Path
from filelock import FileLock
lock = Path(sys.argv[1])
lock.parent.mkdir(parents=True, exist_ok=True)
with FileLock(lock):
    lock.with_suffix(".holder").write_text(f"{os.getpid()} since noon")
    print("held", flush=True)
    time.sleep(60)
"""

Hold = Callable[[str, Path], "subprocess.Popen[str]"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "p")


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Start processes that hold a lock until they are killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, argument: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(argument)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_the_second_runner_is_refused_at_once_and_told_who_runs(layout: Layout, hold: Hold) -> None:
    first = hold(HOLD_RUNNER, layout.root)
    began = time.monotonic()
    with pytest.raises(BusyError) as caught, only_runner(layout, "kdci sweep"):
        raise AssertionError
    assert time.monotonic() - began < 1.5
    assert caught.value.exit_code == 6
    assert f"in use by kdci run, process {first.pid} since 20" in str(caught.value)


def test_a_killed_runner_is_in_nobodys_way(layout: Layout, hold: Hold) -> None:
    first = hold(HOLD_RUNNER, layout.root)
    first.send_signal(signal.SIGKILL)
    first.wait()
    holder = layout.work / "run.holder"
    assert str(first.pid) in holder.read_text()  # it could not remove its note
    with only_runner(layout, "kdci run"):
        assert f"process {os.getpid()} " in holder.read_text()
        assert is_held(layout.work / "run.lock")
    assert not is_held(layout.work / "run.lock")
    assert not holder.exists()


def test_a_runner_that_fails_lets_go_and_leaves_no_note(layout: Layout) -> None:
    with pytest.raises(ValueError, match="inner"), only_runner(layout, "kdci run"):
        raise ValueError("inner")
    assert not (layout.work / "run.holder").exists()
    with only_runner(layout, "kdci run"):
        pass


def test_whoever_looks_keeps_no_runner_out(layout: Layout) -> None:
    """`kdci doctor` asks while a run starts."""
    with only_runner(layout, "kdci run"):
        pass
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_held(layout.work / "run.lock")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            with only_runner(layout, "kdci run"):
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()


def test_stages_at_work_are_those_whose_lock_is_held(layout: Layout, hold: Hold) -> None:
    locks = layout.work / "locks"
    assert stages_at_work(layout) == {}
    process = hold(HOLD_STAGE, locks / "teacher@a.lock")
    with FileLock(locks / "teacher@b.lock"):
        assert stages_at_work(layout) == {
            "teacher@a": f"{process.pid} since noon",
            "teacher@b": "an unknown process",
        }
    process.kill()
    process.wait()
    assert stages_at_work(layout) == {}
    assert not is_held(locks / "nothing.lock")


def test_an_orphan_is_waited_for_and_no_longer(
    layout: Layout, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = hold(HOLD_STAGE, layout.work / "locks" / "teacher@a.lock")
    monkeypatch.setattr(workspace, "ORPHAN_SECONDS", 0.5)
    told = f"teacher@a: is running in process {orphan.pid}"
    with pytest.raises(BusyError, match=told), only_runner(layout, "kdci run"):
        raise AssertionError
    assert not is_held(layout.work / "run.lock")
    monkeypatch.setattr(workspace, "ORPHAN_SECONDS", 30.0)
    threading.Timer(0.5, orphan.kill).start()
    began = time.monotonic()
    with only_runner(layout, "kdci run"):
        assert 0.3 < time.monotonic() - began < 10.0
