"""Signals that stop a run: its stages save their state first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(stop: Callable[[int], None], *, twice_ends: bool) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM in the block stop the run.

    Args:
        stop: Is called with the signal's number, in a thread of its own.
        twice_ends: Whether the second one ends the process at once; else it is ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread alone
        return

    def receive(number: int, frame: FrameType | None) -> None:
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL if twice_ends else signal.SIG_IGN)
        # Not here: the signal may have come while this thread holds the scheduler's lock.
        threading.Thread(target=stop, args=(number,)).start()

    previous = {number: signal.signal(number, receive) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
