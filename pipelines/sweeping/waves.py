"""One wave: stages that can run side by side, as the trials of one Ray Tune run.

Import it inside a ``ray_session``: it imports ray.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from kdci.store.layout import Layout
from pipelines.running.workspace import stages_at_work
from pipelines.sweeping.places import stop_file
from pipelines.sweeping.ray_report import reason
from pipelines.sweeping.resources import Node, Resources
from pipelines.sweeping.stopping import StopRequest
from pipelines.sweeping.trial import GRACE_SECONDS, StageTrial, run_trial


def nodes() -> list[Node]:
    """Return what each node of the cluster has."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [dict(node["Resources"]) for node in known if node["Alive"]]


@dataclass(frozen=True)
class Listeners:
    """Who hears what becomes of trials.

    Attributes:
        on_metrics: A stage and what it reports while it runs.
        on_end: A stage whose trial has ended, and what Ray says of why; "": nothing.
    """

    on_metrics: Callable[[str, Mapping[str, Any]], None]
    on_end: Callable[[str, str], None]


def run_wave(
    name: str,
    plans: Mapping[str, StageTrial],
    *,
    layout: Layout,
    folder: Path,
    resources: Resources,
    max_concurrent: int | None,
    max_failures: int,
    stop: StopRequest,
    listeners: Listeners,
) -> None:
    """Run stages as trials; return when each has ended, or soon after a signal.

    Every stage gets its whole budget: arms that are compared must not be stopped early.

    Args:
        name: Of the experiment in Ray.
        plans: What each stage's trial needs, by stage.
        layout: The places of the project.
        folder: Where the sweep keeps its files.
        resources: Of each trial.
        max_concurrent: Trials at a time; None: as many as fit.
        max_failures: How often a trial is started again after its worker or node died.
        stop: Tells that a signal came.
        listeners: Who hears of it.
    """
    for each in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(each).setLevel(logging.CRITICAL)  # failures are told by the sweep
    trainable = tune.with_resources(partial(run_trial, plans=dict(plans)), resources.request())
    watcher = _Watcher(layout, folder, stop, listeners)
    tuner = tune.Tuner(
        trainable,
        param_space={"stage": tune.grid_search(list(plans))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[watcher],
            verbose=0,
        ),
    )
    # Tune ends on SIGUSR1, which it handles while it runs; before and after it must not kill us.
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    request = stop_file(folder)

    def ask(number: int) -> None:
        request.touch()  # whatever this loop is doing, trials see it

    try:
        with stop.heard_by(ask):
            if not stop:
                tuner.fit()
    finally:
        signal.signal(signal.SIGUSR1, previous)
        # Nothing is ever taken up from Ray's own state, which holds pickles.
        shutil.rmtree(folder / name, ignore_errors=True)


class _Watcher(tune.Callback):
    """Hears of trials from Tune's loop, and ends it when a signal has come."""

    def __init__(
        self, layout: Layout, folder: Path, stop: StopRequest, listeners: Listeners
    ) -> None:
        self._layout = layout
        self._folder = folder
        self._stop = stop
        self._listeners = listeners

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        """Leave nothing in the state that Tune saves: no run is ever taken up from it."""
        return tune.Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._stop:
            return
        # Here and not at once: stages save their state while their workers still live.
        deadline = time.monotonic() + GRACE_SECONDS
        while stages_at_work(self._layout) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "exit_code" not in result:
            self._listeners.on_metrics(trial.config["stage"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._listeners.on_end(trial.config["stage"], "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # The copy of this node: the one in the storage is written later.
        text = ""
        with suppress(OSError, TypeError):
            text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
        self._listeners.on_end(trial.config["stage"], reason(text))
