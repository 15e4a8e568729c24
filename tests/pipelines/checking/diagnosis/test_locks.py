"""Locks of dead processes, of live ones, and what mends the former."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from kdci.store.layout import Layout
from pipelines.checking.diagnosis.doctor import exit_code, repaired
from pipelines.checking.diagnosis.locks import check_locks
from tests.pipelines.checking.diagnosis._findings import dead_pid, lines, trouble


def rwlock(tiny) -> Path:
    return tiny.root / ".dvc/tmp/rwlock"


def test_dvcs_list_names_dead_processes_and_is_mended(tiny) -> None:
    gone, place = dead_pid(), str(tiny.root / "artifacts/tiny/pools/fast")
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        entry = {"pid": gone, "cmd": "dvc repro"}
        working = {"pid": alive.pid, "cmd": "dvc pull"}
        time.sleep(0.1)
        listed = {"write": {place: entry}, "read": {str(tiny.root / "stages"): [entry, working]}}
        rwlock(tiny).write_text(json.dumps(listed))
        assert trouble(check_locks(tiny.layout)) == [
            "warning  DVC has artifacts/tiny/pools/fast and 1 more paths as in use by process "
            f"{gone} (dvc repro), which is gone  (kdci doctor --fix)"
        ]
        assert trouble(repaired(check_locks(tiny.layout))) == []
        left = {"write": {}, "read": {str(tiny.root / "stages"): [working]}}
        assert json.loads(rwlock(tiny).read_text()) == left
        told = lines(check_locks(tiny.layout))
        assert f"ok       DVC has stages as in use by process {alive.pid} (dvc pull)" in told
    finally:
        alive.kill()
        alive.wait()


def test_a_process_number_that_is_anothers_now_blocks_dvc_until_it_is_mended(tiny) -> None:
    """DVC itself mends entries of dead processes only."""
    place = str(tiny.root / "artifacts/tiny/pools/fast")
    rwlock(tiny).parent.mkdir(exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        listed = {"write": {place: {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}
        rwlock(tiny).write_text(json.dumps(listed))
        an_hour_ago = time.time() - 3600
        os.utime(rwlock(tiny), (an_hour_ago, an_hour_ago))
        tiny.edit("methods.fast.num_steps", 4)
        with pytest.raises(AssertionError, match="is busy, it is being blocked by"):
            tiny.dvc("repro", "substitute@fast")
        # The failed attempt wrote the list anew; it is as old as it was again.
        os.utime(rwlock(tiny), (an_hour_ago, an_hour_ago))
        found = list(check_locks(tiny.layout))
        assert exit_code(found) == 2
        assert "that is another process now" in trouble(iter(found))[0]
        assert exit_code(list(repaired(found))) == 0
        assert "substitute@fast" in tiny.repro("substitute@fast")[0]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_damaged_list_is_a_problem(tiny) -> None:
    for text in ("{", '{"write": {"a": 3}}', "[]"):
        rwlock(tiny).write_text(text)
        (told,) = trouble(check_locks(tiny.layout))
        assert told.endswith(f"rwlock is damaged, and DVC refuses to work  (rm {rwlock(tiny)})")


def test_notes_of_dead_holders_are_removed_and_those_of_live_ones_kept(layout: Layout) -> None:
    locks = layout.work / "locks"
    locks.mkdir(parents=True)
    for name in ("ended", "at-work"):
        (locks / f"{name}.lock").touch()
        (locks / f"{name}.holder").write_text(f"{os.getpid()} since noon\n")
    runner = layout.work / "run.lock"
    runner.touch()
    (layout.work / "run.holder").write_text(f"kdci run, process {dead_pid()} since noon\n")
    with FileLock(locks / "at-work.lock"):
        told = lines(check_locks(layout))
        assert f"ok       stage at-work is in use by process {os.getpid()} since noon" in told
        assert any(line.startswith("warning  the workspace is free; kdci run") for line in told)
        assert trouble(repaired(check_locks(layout))) == []
        assert {file.name for file in layout.work.rglob("*.holder")} == {"at-work.holder"}
    assert lines(check_locks(layout))[0] == "ok       no runner holds the workspace"


def test_a_lock_that_a_child_of_a_dead_process_holds(layout: Layout) -> None:
    lock = layout.work / "run.lock"
    lock.parent.mkdir(parents=True)
    # flock goes with the open file: `sleep` inherits it.
    script = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(f, fcntl.LOCK_EX); os.set_inheritable(f, True)\n"
        "print(flush=True); os.execvp('sleep', ['sleep', '60'])"
    )
    command = [sys.executable, "-c", script, str(lock)]
    heir = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert heir.stdout is not None
        heir.stdout.readline()
        (layout.work / "run.holder").write_text(f"kdci run, process {dead_pid()} since noon\n")
        (told,) = trouble(check_locks(layout))
        assert told.startswith("problem  the workspace is held, yet its holder is gone: kdci run")
        assert f"(kill {heir.pid}: " in told
        assert trouble(repaired(check_locks(layout))) == [told]
    finally:
        heir.kill()
        heir.wait()
        heir.stdout.close()


def test_dvcs_own_lock(tiny) -> None:
    script = (
        "import sys, time; from dvc.repo import Repo\n"
        "with Repo(sys.argv[1]) as repo, repo.lock: print(flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny.root)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        told = lines(check_locks(tiny.layout))
        assert any(f"DVC's lock is in use by process {process.pid}: " in line for line in told)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not any("DVC's lock" in line for line in lines(check_locks(tiny.layout)))
    host = os.uname().nodename
    (tiny.root / ".dvc/tmp/lock").write_text(f"/x/lock|{host}|{dead_pid()}|17")  # hardlink_lock
    assert "DVC's lock was left by process" in trouble(check_locks(tiny.layout))[0]
