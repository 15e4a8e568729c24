"""One DVC stage as a process: what it prints, how it ended, and whether to try again.

DVC runs it (`dvc repro --single-item`), so the cache, the run cache and dvc.lock are DVC's own.
A process and not DVC's API: a crash stays in it, its output can be followed, and it can be
stopped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

RETRY_DELAYS = (2.0, 10.0)
"""Seconds before a stage is tried again after a lock or the disk was in the way."""
GRACE_SECONDS = 30.0
"""How long a stage has to save its state when it is stopped, before it is killed."""
TAIL_LINES = 8

_RUNNING = re.compile(r"^Running stage ")
_RESTORED = re.compile(r"^Stage .* is cached - skipping run, checking out outputs")
_EXITED = re.compile(r"exited with (-?\d+)")
_LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by|database is locked")
_IO_CODES = {4, 6}
"""Exit codes of stages: the disk, or another writer."""
_NOISE = re.compile(
    r"^(>|$|Running stage |Updating lock file|Generating lock file|To track the changes|\tgit add"
    r"|Use `dvc push`|To enable auto staging|\tdvc config|Verifying outputs|Data and pipelines"
    r"|Stage .* (didn't change|is cached)|ERROR: failed to reproduce .* exited with -?\d+$)"
)


class State(StrEnum):
    """What became of a stage."""

    completed = "completed"
    cached = "cached"
    restored = "restored"
    failed = "failed"
    stopped = "stopped"
    not_run = "not run"


@dataclass(frozen=True)
class Outcome:
    """How a stage ended.

    Attributes:
        message: Why, in a line or a few: a failed stage's own last lines.
        exit_code: The stage's exit code, 0 if it has a result.
        started: Unix seconds; 0: it was not started.
        seconds: Wall time, the start of processes included.
    """

    stage: str
    state: State
    message: str = ""
    exit_code: int = 0
    started: float = 0.0
    seconds: float = 0.0

    @property
    def has_result(self) -> bool:
        """Tell whether what depends on the stage can go on."""
        return self.state in (State.completed, State.cached, State.restored)


class StageProcess:
    """Runs one stage, as often as locks and I/O make it necessary; its lines go to ``on_line``."""

    def __init__(self, root: Path, name: str, on_line: Callable[[str], None]) -> None:
        self._root = root
        self._name = name
        self._on_line = on_line
        self._process: subprocess.Popen[str] | None = None
        self._killer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ended = threading.Event()

    def run(self) -> Outcome:
        """Run the stage to its end and tell how it ended."""
        started, began = time.time(), time.monotonic()
        for delay in (*RETRY_DELAYS, None):
            state, code, tail, may_retry = self._attempt()
            if state is not State.failed or not may_retry or delay is None:
                break
            self._on_line(f"a lock or the disk was in the way; trying again in {delay:g} s")
            if self._stopped.wait(delay):
                state, code, tail = State.stopped, 128 + signal.SIGTERM, []
                break
        self._ended.set()
        with self._lock:
            if self._killer is not None:
                self._killer.cancel()
        message = _message(state, tail)
        return Outcome(self._name, state, message, code, started, time.monotonic() - began)

    def stop(self) -> None:
        """Ask the stage to save its state and end; it is killed if it does not."""
        self._stopped.set()
        with self._lock:
            process = self._process
        if process is None or process.poll() is not None:
            return
        if sys.platform.startswith("linux"):
            process.terminate()  # DVC alone: its end is what tells the stage
        else:
            _signal_session(process.pid, signal.SIGTERM)
        with self._lock:
            if self._killer is None:
                self._killer = threading.Timer(GRACE_SECONDS, self._kill, [process.pid])
                self._killer.daemon = True
                self._killer.start()

    def _kill(self, session: int) -> None:
        if not self._ended.is_set():  # the number of what is gone may be another's
            _signal_session(session, signal.SIGKILL)

    def _attempt(self) -> tuple[State, int, list[str], bool]:
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        ran = restored = locked = False
        exit_code: int | None = None
        with self._lock:
            if self._stopped.is_set():
                return State.stopped, 128 + signal.SIGTERM, [], False
            process = self._process = _start(self._root, self._name)
        assert process.stdout is not None
        # The stage holds the pipe too: its end is awaited here even when DVC went first.
        for raw in process.stdout:
            line = raw.rstrip()
            ran, restored = (
                ran or bool(_RUNNING.match(line)),
                restored or bool(_RESTORED.match(line)),
            )
            locked = locked or bool(_LOCKED.search(line))
            exited = _EXITED.search(line)
            exit_code = int(exited[1]) if exited else exit_code
            if not _NOISE.match(line):
                tail.append(line)
                self._on_line(line)
        code = process.wait()
        if code == 0:
            state = State.completed if ran else State.restored if restored else State.cached
            return state, 0, [], False
        exit_code = code if exit_code is None else exit_code
        if self._stopped.is_set() or exit_code in (130, 143):
            return State.stopped, 143 if exit_code < 128 else exit_code, list(tail), False
        return State.failed, exit_code, list(tail), locked or exit_code in _IO_CODES


def _start(root: Path, name: str) -> subprocess.Popen[str]:
    dvc = [sys.executable, "-m", "pipelines.running.dvc_process", "--wait-for-lock"]
    # dvc.yaml says `python`: let that be this one, whatever shell kdci runs in.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.Popen(
        [*dvc, "repro", "--single-item", name],
        cwd=root,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,  # a Ctrl-C on the terminal reaches the runner alone
    )


def _signal_session(session: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(session, number)


def _message(state: State, tail: list[str]) -> str:
    if state is State.failed:
        own = [line for line in tail if line.startswith("kdci: error:")]
        return "\n".join(own or tail) or "ended without a word"
    return {
        State.cached: "unchanged",
        State.restored: "taken from DVC's run cache",
        State.stopped: "stopped; it goes on from its checkpoint when it is run again",
    }.get(state, "")
