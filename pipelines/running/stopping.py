"""Signals that stop a run: its stages save their state first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second one ends the process at once.

    Attributes:
        signal_number: The signal that came; None: none has.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._listeners: list[Callable[[int], None]] = []

    def __bool__(self) -> bool:
        return self.signal_number is not None

    @property
    def exit_code(self) -> int:
        """That of a process ended by the signal; 0: none has come."""
        return 0 if self.signal_number is None else 128 + self.signal_number

    @contextmanager
    def heard_by(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Have ``listener`` called with the signal's number, now if it has come."""
        self._listeners.append(listener)
        if self.signal_number is not None:
            listener(self.signal_number)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def installed(self) -> AbstractContextManager[None]:
        """Handle SIGINT and SIGTERM for the block."""
        return stopped_by_signals(self._tell, twice_ends=True)

    def _tell(self, number: int) -> None:
        self.signal_number = number
        for listener in list(self._listeners):
            listener(number)
