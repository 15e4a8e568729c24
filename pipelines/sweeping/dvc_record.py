"""Results of trials in DVC: recorded one batch at a time, by the runner alone.

Trials never talk to DVC: its lock file and its locks know one writer. Recording also makes an
entry of the run cache, as `dvc repro` does, so that going back to old params restores a result.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kdci.graph.standing import differences

OnRecorded = Callable[[str, str | None], None]
"""Hears a stage and why its result was not recorded; None: it was."""


def record(root: Path, names: Sequence[str]) -> dict[str, str | None]:
    """Put results that are in place into DVC's cache and dvc.lock.

    A result that was not made of what is there now is left alone: DVC would take it for one.

    Args:
        root: The project folder.
        names: The stages whose results these are.

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


class DvcCommitter:
    """Records results as they come, in a thread of its own, while the block lasts.

    Args:
        root: The project folder.
        on_recorded: Hears what came of each; called in that thread.
    """

    def __init__(self, root: Path, on_recorded: OnRecorded) -> None:
        self._root = root
        self._on_recorded = on_recorded
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="dvc-record")

    def add(self, name: str) -> None:
        """Have a stage's result recorded."""
        self._waiting.put(name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        over = False
        while not over:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            over = None in batch
            names = dict.fromkeys(name for name in batch if name is not None)
            for name, problem in record(self._root, [*names]).items():
                self._on_recorded(name, problem)
