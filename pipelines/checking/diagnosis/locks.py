"""Locks that nobody holds any more, and who holds the others.

The kernel frees the project's own locks and DVC's repository lock with their process. What can
go stale are notes of who held one, and DVC's list of who reads and writes which path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from kdci.store.layout import Layout
from pipelines.checking.diagnosis.findings import Finding, ok, problem, warning
from pipelines.running.workspace import holder_of, is_held

_PID = re.compile(r"\b(\d+) since ")
_CLOCK_SECONDS = 2.0
_COMMAND_CHARS = 80


def check_locks(layout: Layout) -> Iterator[Finding]:
    """Look at the locks of a workspace: its runner's, its stages' and DVC's."""
    yield from _runner(layout)
    yield from _stages(layout)
    yield from _dvc_lock(layout.root)
    yield from _rwlock(layout.root)


# -- the project's own ------------------------------------------------------------------------


def _runner(layout: Layout) -> Iterator[Finding]:
    lock = layout.work / "run.lock"
    holder = lock.with_suffix(".holder")
    if is_held(lock):
        yield _held("the workspace", lock, holder)
    elif holder.exists():
        what = f"the workspace is free; {holder_of(holder)} ended without a word"
        yield warning(what, "kdci doctor --fix", repair=partial(_remove_holder, lock))
    else:
        yield ok("no runner holds the workspace")


def _stages(layout: Layout) -> Iterator[Finding]:
    ended = []
    for lock in sorted((layout.work / "locks").glob("*.lock")):
        holder = lock.with_suffix(".holder")
        if is_held(lock):
            yield _held(f"stage {lock.stem}", lock, holder)
        elif holder.exists():
            ended.append(lock)
    if ended:
        what = f"{len(ended)} notes of who ran a stage last; harmless"
        repair = partial(_remove_holders, ended)
        yield ok(what, "kdci doctor --fix removes them", repair=repair)


def _held(what: str, lock: Path, holder: Path) -> Finding:
    """Return who holds a lock; a child of a dead process may have inherited it."""
    who = holder_of(holder)
    match = _PID.search(who)
    if match is None or psutil.pid_exists(int(match[1])):
        return ok(f"{what} is in use by process {who}".replace("process kdci", "kdci"))
    heirs = " ".join(str(pid) for pid in _processes_with(lock))
    mend = f"kill {heirs}" if heirs else "find out who has it open"
    return problem(f"{what} is held, yet its holder is gone: {who}", f"{mend}: {lock}")


def _processes_with(file: Path) -> Iterator[int]:
    for process in psutil.process_iter(["open_files"]):
        opened = [one.path for one in process.info["open_files"] or ()]
        if str(file) in opened and process.pid != os.getpid():
            yield process.pid


def _remove_holders(locks: list[Path]) -> str:
    for lock in locks:
        _remove_holder(lock)
    return f"removed {len(locks)} notes of ended stages"


def _remove_holder(lock: Path) -> str:
    """Remove the note beside a lock, with the lock held: nobody can write a new one meanwhile."""
    holder = lock.with_suffix(".holder")
    with held_if_free(lock) as free:
        if not free:
            return f"left {holder.name}: the lock was taken just now"
        holder.unlink(missing_ok=True)
    return f"removed {holder.name}"


@contextmanager
def held_if_free(lock: Path) -> Iterator[bool]:
    """Hold a lock for the block; yield False if a live process holds it."""
    mine = FileLock(lock)
    try:
        mine.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        mine.release()


# -- DVC's ------------------------------------------------------------------------------------


def _dvc_lock(root: Path) -> Iterator[Finding]:
    lock = root / ".dvc" / "tmp" / "lock"
    if not lock.exists():
        return
    text = lock.read_text(encoding="utf-8", errors="replace").strip()
    if is_held(lock):
        yield ok(f"DVC's lock is in use by {_process_name(text)}")
        return
    # With core.hardlink_lock the file is the lock, and says host and process.
    parts = text.split("|")
    if len(parts) != 4 or parts[1] != os.uname().nodename:
        return
    if not parts[2].isdigit() or not psutil.pid_exists(int(parts[2])):
        yield problem(f"DVC's lock was left by process {parts[2]}, which is gone", f"rm {lock}")


def _process_name(pid: str) -> str:
    try:
        process = psutil.Process(int(pid))
        return f"process {pid}: {' '.join(process.cmdline())[:_COMMAND_CHARS]}"
    except (ValueError, psutil.Error):
        return "an unknown process"


def _rwlock(root: Path) -> Iterator[Finding]:
    file = root / ".dvc" / "tmp" / "rwlock"
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        entries = list(_entries(listed))
        changed = file.stat().st_mtime
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError, AttributeError):
        yield problem(f"{file} is damaged, and DVC refuses to work", f"rm {file}")
        return
    repair = partial(_clear_rwlock, root)
    for (pid, command), paths in _by_process(entries).items():
        first = os.path.relpath(paths[0], root)
        more = f" and {len(paths) - 1} more paths" if len(paths) > 1 else ""
        what = f"DVC has {first}{more} as in use by process {pid} ({command})"
        if not psutil.pid_exists(pid):
            yield warning(f"{what}, which is gone", "kdci doctor --fix", repair=repair)
        elif _is_another(pid, changed):
            # DVC sees only that there is such a process, and waits for it for ever.
            mend = "kdci doctor --fix"
            yield problem(f"{what}; that is another process now", mend, repair=repair)
        else:
            yield ok(what)


def _by_process(entries: list[tuple[str, int, str]]) -> dict[tuple[int, str], list[str]]:
    found: dict[tuple[int, str], list[str]] = {}
    for path, pid, command in entries:
        words = [os.path.basename(word) for word in command.split()]
        found.setdefault((pid, " ".join(words)[:_COMMAND_CHARS]), []).append(path)
    return found


def _entries(listed: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield path, process id and command of each entry of DVC's list."""
    for path, info in listed.get("write", {}).items():
        yield str(path), int(info["pid"]), str(info["cmd"])
    for path, infos in listed.get("read", {}).items():
        for info in infos:
            yield str(path), int(info["pid"]), str(info["cmd"])


def _is_another(pid: int, listed_at: float) -> bool:
    """Tell whether a process began after the list was written: its entry is an older one's."""
    try:
        return psutil.Process(pid).create_time() > listed_at + _CLOCK_SECONDS
    except psutil.Error:
        return False


def _clear_rwlock(root: Path) -> str:
    """Remove the entries of processes that are gone, while no DVC can write the list."""
    # DVC's own editor of the file, which holds the file's lock; it is private.
    from dvc.repo import Repo
    from dvc.rwlock import _edit_rwlock

    file = root / ".dvc" / "tmp" / "rwlock"
    changed = file.stat().st_mtime

    def left(infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [info for info in infos if not _is_stale(int(info["pid"]), changed)]

    with Repo(str(root)) as repo:
        hardlink = bool(repo.config["core"].get("hardlink_lock", False))
        with _edit_rwlock(str(file.parent), repo.fs, hardlink) as listed:
            before, writers, readers = len(list(_entries(listed))), listed["write"], listed["read"]
            listed["write"] = {path: info for path, info in writers.items() if left([info])}
            listed["read"] = {path: left(infos) for path, infos in readers.items() if left(infos)}
            removed = before - len(list(_entries(listed)))
    return f"removed {removed} entries of processes that are gone from DVC's list"


def _is_stale(pid: int, listed_at: float) -> bool:
    return not psutil.pid_exists(pid) or _is_another(pid, listed_at)
