"""How a stage is stopped: at a step boundary, with its state saved, and with its parent."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """Set by the first SIGTERM or SIGINT; the second one ends the process at once."""

    signal_number: int | None = None

    def install(self) -> None:
        """Handle SIGTERM and SIGINT from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)


def die_with_parent(stop: StopFlag) -> None:
    """Have this process stopped when the process that started it dies.

    A killed `dvc repro` would otherwise leave its stage running. Linux tells by signal; else
    the lock alone keeps two writers apart.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    set_parent_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between
        stop.signal_number = signal.SIGTERM
