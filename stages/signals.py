"""How a stage is stopped: at a step boundary, with its state saved, and with its parent."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PARENT_DIED = signal.SIGUSR1
"""Not SIGTERM: the kernel tells of a parent's death once for each of its threads, and a second
SIGTERM ends a stage before it has saved its state."""
SHELLS = {"sh", "dash", "ash", "bash", "ksh", "zsh", "fish"}


@dataclass
class StopFlag:
    """Set by the first SIGTERM or SIGINT; the second one ends the process at once.

    The death of the parent counts as a SIGTERM, however often it is told.
    """

    signal_number: int | None = None

    def install(self) -> None:
        """Handle SIGTERM, SIGINT and the death of the parent from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        signal.signal(PARENT_DIED, self._receive_death)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)

    def _receive_death(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = self.signal_number or signal.SIGTERM


def die_with_parent(stop: StopFlag) -> None:
    """Have this process stopped when the process that started it dies.

    A killed `dvc repro` would otherwise leave its stage running. Linux tells by signal, which
    ends a process that did not install a flag; else the lock alone keeps two writers apart.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, PARENT_DIED)
    if os.getppid() != parent:  # it died in between
        stop.signal_number = signal.SIGTERM
    if "DVC_STAGE" in os.environ:
        _die_with_dvc(stop, parent)


def _die_with_dvc(stop: StopFlag, parent: int) -> None:
    """Watch DVC where a shell stays between it and its stage: the shell outlives DVC.

    `bash -c` becomes the command it runs; `dash -c`, which is /bin/sh on Debian, does not
    always, and DVC takes /bin/sh where $SHELL is not set: under cron, in services and in CI.
    """
    dvc = parent
    while _is_shell(dvc):
        dvc = _parent_of(dvc)
    if dvc == parent:
        return
    try:
        watched = os.pidfd_open(dvc)
    except ProcessLookupError:
        stop.signal_number = signal.SIGTERM
        return
    except OSError:  # an old kernel, or a sandbox that forbids it: the lock alone must do
        return
    of_init = dvc == 1 and not any(b"dvc" in word for word in _arguments(dvc))
    if of_init or os.getppid() != parent:  # DVC, or the shell, died before it was watched
        stop.signal_number = signal.SIGTERM

    def watch() -> None:
        select.select([watched], [], [])
        os.kill(os.getpid(), PARENT_DIED)

    threading.Thread(target=watch, name="watches-dvc", daemon=True).start()


def _is_shell(process: int) -> bool:
    arguments = _arguments(process)
    return Path(os.fsdecode(arguments[0])).name in SHELLS and b"-c" in arguments


def _arguments(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]


def _parent_of(process: int) -> int:
    try:  # the name in parentheses may hold anything; the state and the parent follow it
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 1  # gone, so that who asks is an orphan
