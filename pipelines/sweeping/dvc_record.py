"""Results of trials in DVC: recorded one batch at a time, by the runner alone; and found again.

Trials never talk to DVC: its lock file and its locks know one writer. Recording also makes an
entry of the run cache, as `dvc repro` does, so that going back to old params restores a result.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kdci.graph.standing import differences
from pipelines.flow.telemetry import switch_off

OnRecorded = Callable[[str, str | None], None]
"""Hears a stage and why its result was not recorded; None: it was."""


def record(root: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Put results that are in place into DVC's cache and dvc.lock.

    A result that was not made of what is there now is left alone: DVC would take it for one.

    Returns:
        By stage: why it was not recorded; None: it was.
    """
    outcome = differences(root, names)
    sound = [name for name, problem in outcome.items() if problem is None]
    return {**outcome, **commit(root, sound)}


def commit(root: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Commit stages at once or, if that does not go, each by itself; nothing is compared."""
    if not names:
        return {}
    problem = _dvc_commit(root, names)
    if problem is None or len(names) == 1:
        return dict.fromkeys(names, problem)
    return {name: _dvc_commit(root, [name]) for name in names}


def _dvc_commit(root: Path, names: Sequence[str]) -> str | None:
    dvc = [sys.executable, "-m", "pipelines.running.dvc_process", "--wait-for-lock"]
    done = subprocess.run(
        [*dvc, "commit", "--force", "--quiet", *names],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a Ctrl-C waits for what is being recorded
    )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return f"`dvc commit` ended with {done.returncode}: {(lines or ['no word'])[-1]}"


@contextmanager
def recording(root: Path, on_recorded: OnRecorded) -> Iterator[Callable[[str], None]]:
    """Yield what has a stage's result recorded, in a thread of its own; all are, at the end.

    ``on_recorded`` hears in that thread what came of each.
    """
    waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def work() -> None:
        over = False
        while not over:
            batch = [waiting.get()]
            while not waiting.empty():
                batch.append(waiting.get())
            over = None in batch
            names = dict.fromkeys(name for name in batch if name is not None)
            for name, problem in record(root, [*names]).items():
                on_recorded(name, problem)

    thread = threading.Thread(target=work, name="dvc-record")
    thread.start()
    try:
        yield waiting.put
    finally:
        waiting.put(None)
        thread.join()


def restorable(root: Path, names: Sequence[str]) -> list[str]:
    """Return the stages, of those with parents up to date, whose result DVC's run cache has.

    A cache that can not be asked has none: the stages are run then. It is asked in a process of
    its own: DVC looks for a cached result's files from the working folder.
    """
    if not names:
        return []
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.sweeping.dvc_record", *names],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return []
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(names: Sequence[str]) -> int:
    """Write the names of those whose result the run cache has, as a JSON list."""
    switch_off()
    sys.stdout.write(json.dumps(list(_look_up(names))) + "\n")
    return 0


def _look_up(names: Sequence[str]) -> Iterator[str]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo, repo.lock:
        for stage in repo.index.stages:
            if getattr(stage, "name", None) not in names:
                continue
            try:
                # The private half of StageCache.restore, whose other half restores it.
                stage.save_deps()
                entry = repo.stage_cache._load(stage)
                if entry and repo.stage_cache._create_stage(entry, wdir=stage.wdir).outs_cached():
                    yield stage.name
            except DvcException:
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
