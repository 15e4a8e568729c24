"""What a foreign checkpoint may cost, and what the process that reads it denies itself.

The second line behind ``weights_only``: should a reader ever be tricked into running code, then
neither pickle's own loader, nor another process, nor the network, nor a change to the file
system is within reach. Python tells of these before they happen ("audit events").
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MIB = 2**20
MAX_FILE_BYTES = 4096 * MIB
"""The largest classifiers of torchvision have 2.5 GB."""
MAX_PICKLE_BYTES = 64 * MIB
"""A state dict's own pickle holds names and shapes alone: some hundred bytes a tensor."""
MAX_ENTRIES = 20_000
"""Members of an archive, and tensors of a state dict."""
MAX_NAME_LENGTH = 256
MAX_REPORT_BYTES = MIB
CPU_SECONDS = 600
WALL_SECONDS = 900.0
_SPARE_BYTES = 512 * MIB
"""Address space for what reading itself needs, beside the file and its tensors."""
_DENIED = (
    *("pickle.", "socket.", "subprocess.", "ctypes.", "pty.", "shutil.", "tempfile."),
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "os.putenv"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "os.chdir"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit_process() -> None:
    """Bound this process's processor time, files and core dumps for good."""
    limits = {
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES + MIB,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
    }
    for which, value in limits.items():
        _lower(which, value, for_good=True)


@contextmanager
def memory_for(num_bytes: int) -> Iterator[None]:
    """Let the block's address space grow by ``num_bytes`` and what reading itself needs.

    Linux alone knows how large the process is and keeps to the limit; elsewhere the caps on
    the file and its tensors are all there is.
    """
    size = _address_space()
    if size is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    _lower(resource.RLIMIT_AS, size + num_bytes + _SPARE_BYTES, for_good=False)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _lower(which: int, value: int, *, for_good: bool) -> None:
    soft, hard = resource.getrlimit(which)
    known = [bound for bound in (soft, hard, value) if bound != resource.RLIM_INFINITY]
    lowest = min(known)
    with suppress(ValueError, OSError):  # a system that does not know this limit
        resource.setrlimit(which, (lowest, lowest if for_good else hard))


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
