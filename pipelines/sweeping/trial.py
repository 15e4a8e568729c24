"""One trial of a grid sweep: a stage's own command as a process on a Ray worker.

Ray only says where and when. The result goes to its own place in the shared project folder, and
whatever ends the trial early leaves the stage's checkpoint, from which the next attempt goes on.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdci.graph.standing import differences
from kdci.store.metrics import read_metrics
from pipelines.sweeping import attempts
from pipelines.sweeping.attempts import log_of, stop_file
from pipelines.sweeping.guarded import Guard, end, last_words

POLL_SECONDS = 0.5
REPORT_SECONDS = 5.0
"""Between two reports of a stage's metrics to Ray."""
STOP_CODES = {130, 143}
FINAL_CODES = {0, 1, 2, 3, 5}
"""Exit codes that another attempt would not change; the disk, a lock or a signal it may."""

Report = Callable[[dict[str, float]], None]


class AttemptFailedError(Exception):
    """An attempt ended in a way that another one may not; Ray makes that one."""


Calls = Mapping[str, tuple[str, ...]]
"""The module that each stage runs, and its cell; by the stage's name in DVC."""


def run_trial(config: Mapping[str, Any], calls: Calls, folder: Path, guard: Guard) -> None:
    """Run the stage of a trial, as Ray calls it; returns when it has a result or never will."""
    import ray
    from ray import tune

    context, runtime = tune.get_context(), ray.get_runtime_context()
    links = {
        "ray.trial_id": str(context.get_trial_id()),
        "ray.experiment": str(context.get_experiment_name()),
        "ray.node_id": str(runtime.get_node_id()),
        "ray.host": socket.gethostname(),
    }
    stage = config["stage"]
    code = execute(stage, calls[stage], folder, guard, links, lambda values: tune.report(values))
    tune.report({"exit_code": code})


def execute(
    stage: str,
    call: tuple[str, ...],
    folder: Path,
    guard: Guard,
    links: Mapping[str, str],
    report: Report,
) -> int:
    """Make one attempt at a stage and return its exit code; its newest metrics are reported.

    Raises:
        AttemptFailedError: It failed, and another attempt may not.
    """
    attempts.begin(folder, stage, links)
    # Finished by a worker that died before it could say so?
    if differences(guard.root, [stage])[stage] is None:
        attempts.end(folder, stage, 0, "")
        return 0
    if stop_file(folder).exists():
        attempts.end(folder, stage, 143, "")
        return 143
    process = guard.start(call, log_of(folder, stage), stage=stage)
    try:
        with _stopped_on_request(process, stop_file(folder)) as stopped:
            _follow(process, guard.root / ".kdci" / "work" / stage, report)
    finally:  # this thread may be told to go before it has ended
        end(process)
    code = process.returncode
    message = "" if code == 0 else last_words(log_of(folder, stage)) or "ended without a word"
    attempts.end(folder, stage, code, message)
    if code in FINAL_CODES or stopped.is_set():
        return code
    raise AttemptFailedError(f"exit code {code}: {message}")


def _follow(process: subprocess.Popen[bytes], work: Path, report: Report) -> None:
    """Report the newest metrics now and then until the process has ended."""
    began, reported = time.time(), 0.0
    told: dict[str, float] = {}
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return
        if time.monotonic() - reported < REPORT_SECONDS:
            continue
        newest = _newest_metrics(work, since=began)
        if newest and newest != told:
            report(newest)
            reported, told = time.monotonic(), newest


def _newest_metrics(work: Path, *, since: float) -> dict[str, float]:
    """Return the last line of the metrics that the stage wrote since then; empty: none."""
    files = [file for file in work.glob("*/metrics.jsonl") if changed(file) >= since]
    for file in sorted(files, key=changed, reverse=True):
        with suppress(OSError):  # the stage has just finished
            rows = read_metrics(file)
            return rows[-1] if rows else {}
    return {}


def changed(file: Path) -> float:
    """Return when a file was last written, in Unix seconds; 0: it is gone."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _stopped_on_request(
    process: subprocess.Popen[bytes], request: Path
) -> Iterator[threading.Event]:
    """Stop the process when the runner asks for it; a thread, since a report may block."""
    over, stopped = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if request.exists():
                stopped.set()
                end(process)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        over.set()
        watcher.join()
