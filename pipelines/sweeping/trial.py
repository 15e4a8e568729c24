"""One trial of a grid sweep: a stage's own command as a process on a Ray worker.

Ray only says where and when. The result goes to its own place in the shared project folder, and
whatever ends the trial early leaves the stage's checkpoint, from which the next attempt goes on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.graph.standing import differences
from kdci.store.metrics import read_metrics
from pipelines.sweeping import attempts
from pipelines.sweeping.guarded import command
from pipelines.sweeping.places import attempts_of, log_of, stop_file
from pipelines.sweeping.stage_environment import stage_environment

POLL_SECONDS = 0.5
REPORT_SECONDS = 5.0
"""Between two reports of a stage's metrics to Ray."""
GRACE_SECONDS = 30.0
"""How long a stopped stage has to save its state before it is killed."""
STOP_CODES = {130, 143}
FINAL_CODES = {0, 1, 2, 3, 5}
"""Exit codes that another attempt would not change; the disk, a lock or a signal it may."""

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class StageTrial:
    """What a worker needs to know of a stage.

    Attributes:
        stage: Its name in DVC.
        call: The module it runs, and its cell.
        root: The project folder: the same on every node.
        folder: Where the sweep keeps its files.
        environment: Variables of the runner that decide threads and bits.
        gpu_share: Share of a GPU's memory it may take; 0: all.
    """

    stage: str
    call: tuple[str, ...]
    root: Path
    folder: Path
    environment: Mapping[str, str]
    gpu_share: float = 0.0


class AttemptFailedError(Exception):
    """An attempt ended in a way that another one may not; Ray makes that one."""


def run_trial(config: Mapping[str, Any], plans: Mapping[str, StageTrial]) -> None:
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
    plan = plans[config["stage"]]
    code = execute(plan, links, lambda metrics: tune.report(metrics))
    tune.report({"exit_code": code})


def execute(plan: StageTrial, links: Mapping[str, str], report: Report) -> int:
    """Make one attempt at a stage and return its exit code.

    Raises:
        AttemptFailedError: It failed, and another attempt may not.
    """
    notes = attempts_of(plan.folder, plan.stage)
    attempts.begin(notes, links)
    # Finished by a worker that died before it could say so?
    if differences(plan.root, [plan.stage])[plan.stage] is None:
        attempts.end(notes, 0, "")
        return 0
    if stop_file(plan.folder).exists():
        attempts.end(notes, 143, "")
        return 143
    code, stopped = _run(plan, report)
    message = "" if code == 0 else last_words(log_of(plan.folder, plan.stage))
    attempts.end(notes, code, message)
    if code in FINAL_CODES or stopped:
        return code
    raise AttemptFailedError(f"exit code {code}: {message}")


def last_words(log: Path) -> str:
    """Return the error that a stage ended with, or its last line."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return "ended without a word"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("kdci: error:")]
    return (own or lines or ["ended without a word"])[-1]


def _run(plan: StageTrial, report: Report) -> tuple[int, bool]:
    """Run the stage's process; return its exit code and whether we stopped it."""
    environment = stage_environment(
        os.environ, plan.environment, stage=plan.stage, root=str(plan.root)
    )
    with log_of(plan.folder, plan.stage).open("ab") as log:
        # A file and not a pipe: it outlives this worker, and a stage that is told to end by the
        # worker's death must be able to say so.
        process = subprocess.Popen(
            command(plan.call, gpu_share=plan.gpu_share),
            cwd=plan.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with _ended_with_us(process), _stopped_on_request(process, plan) as stopped:
        _follow(process, plan, report)
    return process.returncode, stopped.is_set()


def _follow(process: subprocess.Popen[bytes], plan: StageTrial, report: Report) -> None:
    """Report the newest metrics now and then until the process has ended."""
    began, reported = time.time(), 0.0
    told: dict[str, float] = {}
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return
        if time.monotonic() - reported < REPORT_SECONDS:
            continue
        newest = newest_metrics(plan, since=began)
        if newest and newest != told:
            report(newest)
            reported, told = time.monotonic(), newest


def newest_metrics(plan: StageTrial, *, since: float) -> dict[str, float]:
    """Return the last line of the metrics that the stage wrote since then; empty: none."""
    folder = plan.root / ".kdci" / "work" / plan.stage
    files = [file for file in folder.glob("*/metrics.jsonl") if _changed(file) >= since]
    for file in sorted(files, key=_changed, reverse=True):
        with suppress(OSError):  # the stage has just finished
            rows = read_metrics(file)
            return rows[-1] if rows else {}
    return {}


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop the process if this thread is told to go before it has ended."""
    try:
        yield
    finally:
        _terminate(process)


@contextmanager
def _stopped_on_request(
    process: subprocess.Popen[bytes], plan: StageTrial
) -> Iterator[threading.Event]:
    """Stop the process when the runner asks for it; a thread, since a report may block."""
    over, stopped = threading.Event(), threading.Event()
    request = stop_file(plan.folder)

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if request.exists():
                stopped.set()
                _terminate(process)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stopped
    finally:
        over.set()
        watcher.join()


def _terminate(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
