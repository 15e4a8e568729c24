"""A sweep that is asked to stop: by whom, and what is told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
        """Have ``listener`` called with the signal's number, now if it has come.

        It is called inside the handler: it must take no lock.
        """
        self._listeners.append(listener)
        if self.signal_number is not None:
            listener(self.signal_number)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM for the block."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        self.signal_number = number
        for listener in list(self._listeners):
            listener(number)
