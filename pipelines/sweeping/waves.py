"""One wave: stages that can run side by side, as the trials of one Ray Tune run.

Import it inside a ``ray_session``: it imports ray.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from kdci.store.layout import Layout
from pipelines.running.stopping import StopRequest
from pipelines.running.workspace import await_stages
from pipelines.sweeping.attempts import stop_file
from pipelines.sweeping.guarded import GRACE_SECONDS, Guard
from pipelines.sweeping.resources import Resources
from pipelines.sweeping.trial import Calls, run_trial


def run_wave(
    name: str,
    calls: Calls,
    guard: Guard,
    *,
    layout: Layout,
    folder: Path,
    resources: Resources,
    max_concurrent: int | None,
    max_failures: int,
    stop: StopRequest,
    on_metrics: Callable[[str, Mapping[str, Any]], None],
    on_end: Callable[[str, str], None],
) -> None:
    """Run stages as trials; return when each has ended, or soon after a signal.

    Every stage gets its whole budget: arms that are compared must not be stopped early.
    ``on_metrics`` hears a stage and what it reports while it runs, ``on_end`` one whose trial has
    ended, and Ray's report of its failures, if any.
    """
    for each in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(each).setLevel(logging.CRITICAL)  # failures are told by the sweep
    tuner = tune.Tuner(
        tune.with_resources(
            partial(run_trial, calls=calls, folder=folder, guard=guard), resources.request()
        ),
        param_space={"stage": tune.grid_search(list(calls))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=max_concurrent,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            callbacks=[_watcher(layout, stop, on_metrics, on_end)],
            verbose=0,
        ),
    )
    # Tune ends on SIGUSR1, which it handles while it runs; before and after it must not kill us.
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        # Whatever Tune's loop is doing, trials see the file.
        with stop.heard_by(lambda number: stop_file(folder).touch()):
            if not stop:
                tuner.fit()
    finally:
        signal.signal(signal.SIGUSR1, previous)
        # Nothing is ever taken up from Ray's own state, which holds pickles.
        shutil.rmtree(folder / name, ignore_errors=True)


def _watcher(
    layout: Layout,
    stop: StopRequest,
    on_metrics: Callable[[str, Mapping[str, Any]], None],
    on_end: Callable[[str, str], None],
) -> tune.Callback:
    class Watcher(tune.Callback):
        """Hears of trials from Tune's loop, and ends it when a signal has come."""

        def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
            """Leave nothing in the state that Tune saves: no run is ever taken up from it."""
            return tune.Callback, ()

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if not stop:
                return
            # Here and not at once: stages save their state while their workers still live.
            await_stages(layout, GRACE_SECONDS)
            os.kill(os.getpid(), signal.SIGUSR1)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            if "exit_code" not in result:
                on_metrics(trial.config["stage"], result)

        def on_trial_complete(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            on_end(trial.config["stage"], "")

        def on_trial_error(
            self, iteration: int, trials: list[Any], trial: Any, **info: Any
        ) -> None:
            # The copy of this node: the one in the storage is written later.
            text = ""
            with suppress(OSError, TypeError):
                text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")
            on_end(trial.config["stage"], text)

    return Watcher()
