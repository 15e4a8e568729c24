"""One runner a workspace: who runs the stages of a project folder, and who is refused."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdci.errors import BusyError
from kdci.store.artifacts import replace_file, storage_errors
from kdci.store.layout import Layout

ORPHAN_SECONDS = 20.0
"""How long stages of a killed runner have to save their state and leave."""
GLANCE_SECONDS = 0.3
"""Longer than anybody who only looks whether a lock is held keeps it, see ``is_held``."""


@contextmanager
def only_runner(layout: Layout, what: str) -> Iterator[None]:
    """Hold the workspace for ``what``, as `kdci run`; the kernel frees it however this one ends.

    Raises:
        BusyError: Another runner holds it, or a stage that none of ours started is at work.
    """
    lock = layout.work / "run.lock"
    with storage_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".holder")
    held = FileLock(lock)
    try:
        held.acquire(timeout=GLANCE_SECONDS)
    except Timeout:
        fix = "wait for it, or stop that process"
        raise BusyError(str(layout.root), f"is in use by {holder_of(holder)}", fix) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        replace_file(holder, f"{what}, process {os.getpid()} since {since}\n".encode())
        for name, who in await_stages(layout, ORPHAN_SECONDS).items():
            what = f"is running in process {who}, started by something else"
            raise BusyError(name, what, "wait for it, or stop that process")
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def holder_of(file: Path) -> str:
    """Return what a ``.holder`` file says of who holds the lock beside it."""
    try:
        return file.read_text(encoding="utf-8").strip() or "an unknown process"
    except OSError:
        return "an unknown process"


def stages_at_work(layout: Layout) -> dict[str, str]:
    """Return the stages that a live process works on, each with who that is."""
    found = {}
    for lock in sorted((layout.work / "locks").glob("*.lock")):
        if is_held(lock):
            found[lock.stem] = holder_of(lock.with_suffix(".holder"))
    return found


def is_held(lock: Path) -> bool:
    """Tell whether a process holds ``lock``; a killed one has let go of it.

    The shared lock taken to find out is let go at once: whoever wants the lock itself tries for
    longer than that.
    """
    try:
        handle = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def await_stages(layout: Layout, seconds: float) -> dict[str, str]:
    """Wait, for so long, until no stage is at work; return those that still are."""
    deadline = time.monotonic() + seconds
    while (at_work := stages_at_work(layout)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return at_work
