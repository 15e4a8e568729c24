"""A process that reads foreign bytes denies itself what reading does not need.

The second line behind ``weights_only``: should a reader ever be tricked into running code, then
neither pickle's own loader, nor another process, nor the network, nor a change to the file
system is within reach. Python tells of these before they happen ("audit events").
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_DENIED = (
    *("pickle.", "socket.", "subprocess.", "ctypes.", "pty.", "shutil.", "tempfile."),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.chdir"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Lock:
    """Whether the process is locked down now; the hook, once added, stays for good."""

    closed = False
    watched = False


@contextmanager
def locked_down() -> Iterator[None]:
    """Deny processes, network, changes of files and pickle's loader in the block.

    Imports stay possible: torch loads parts of itself when it first reads a file.

    Raises:
        PermissionError: In the block, of what is tried; the message names the audit event.
    """
    if not _Lock.watched:
        sys.addaudithook(_watch)
        _Lock.watched = True
    _Lock.closed = True
    try:
        yield
    finally:
        _Lock.closed = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _Lock.closed and (event.startswith(_DENIED) or _opens_for_writing(event, arguments)):
        raise PermissionError(f"denied while a foreign file is read: {event}")


def _opens_for_writing(event: str, arguments: tuple[Any, ...]) -> bool:
    return event == "open" and bool(arguments[2] & _WRITING)
