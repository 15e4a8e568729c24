"""How long stages took before: a record of each past execution that left one.

Three places know of them. Every artifact has a file of wall times beside it; DVC's run cache
holds those of earlier executions, with the params they were made with; the journal adds what
the start of processes took. An execution that several of them tell of counts once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from kdci.store.layout import Layout
from pipelines.explaining.differences import Comparison, locked_params, read_yaml_quickly
from pipelines.explaining.tasks import Task, num_steps
from pipelines.graph.dag import Dag
from pipelines.running import journal

_SLACK_SECONDS = 2.0
"""By how much the clocks of an execution's two records may disagree."""


@dataclass(frozen=True)
class PastRun:
    """One execution that ended well.

    Attributes:
        task: What was worked on.
        started: Unix seconds.
        finished: Unix seconds.
        seconds: Wall time.
        loop_seconds: What of that went with the number of steps.
        steps: Number of its steps; None: not known, or there is no such number.
    """

    task: Task
    started: float
    finished: float
    seconds: float
    loop_seconds: float = 0.0
    steps: int | None = None


def read_past_runs(
    layout: Layout, dag: Dag, tasks: Mapping[str, Task], comparison: Comparison
) -> list[PastRun]:
    """Return the past executions of the layout's preset, each once; tasks are those of now."""
    found: dict[tuple[str, float], PastRun] = {}
    times_folder = f"artifacts/{layout.preset}/"
    for run in (
        *_of_run_cache(comparison, times_folder),
        *_of_artifacts(layout.root, dag, comparison),
    ):
        found[repr(run.task), run.started] = run
    return _with_journal(list(found.values()), journal.read(layout), tasks)


# -- wall times -------------------------------------------------------------------------------


def _of_artifacts(root: Path, dag: Dag, comparison: Comparison) -> Iterator[PastRun]:
    for name, stage in dag.stages.items():
        entry = comparison.lock.get(name)
        file = _times_file(stage.outs)
        if entry is not None and file is not None:
            yield from _read_times(root / file, locked_params(entry))


def _of_run_cache(comparison: Comparison, folder: str) -> Iterator[PastRun]:
    for file in sorted(comparison.past_runs.glob("*/*/*")):
        entry = _read_run(file)
        outs = {out["path"]: str(out.get("md5", "")) for out in entry.get("outs") or ()}
        path = _times_file(outs)
        if path is not None and path.startswith(folder):
            digest = outs[path]
            times = comparison.contents / digest[:2] / digest[2:]
            yield from _read_times(times, locked_params(entry))


def _read_run(file: Path) -> dict[str, Any]:
    try:
        return read_yaml_quickly(file)
    except (OSError, ValueError, YAMLError):
        return {}  # DVC removes a damaged entry by itself


def _times_file(outs: Any) -> str | None:
    """Return which of a stage's outputs has its wall times; the report's has none."""
    return next((out for out in outs if "/timings/" in out and out.endswith(".json")), None)


def _read_times(file: Path, params: Mapping[str, Any]) -> Iterator[PastRun]:
    """Yield the execution that a file of wall times is about, if it says so."""
    try:
        times = json.loads(file.read_text(encoding="utf-8"))
        task = Task.read(times.get("stage"), times.get("point"))
        if task is not None:
            yield PastRun(
                task,
                float(times["started"]),
                float(times["finished"]),
                float(times["seconds"]),
                float(times["loop_seconds"]),
                num_steps(task, params),
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


# -- the journal ------------------------------------------------------------------------------


def _with_journal(
    runs: list[PastRun], executions: list[journal.Execution], tasks: Mapping[str, Task]
) -> list[PastRun]:
    """Add what the journal knows: the start of processes, and runs that left no wall times."""
    found = list(runs)
    for execution in executions:
        # An older entry has no more than a name, which has to be one of now.
        task = Task.read(execution.kind, execution.point) or tasks.get(execution.stage)
        if execution.outcome != "completed" or task is None:
            continue
        at = next((i for i, run in enumerate(found) if _is_same(run, execution, task)), None)
        if at is None:
            ended = execution.started + execution.seconds
            found.append(PastRun(task, execution.started, ended, execution.seconds))
        else:
            # The stage's own count holds the time before an interruption, the journal's does not.
            longer = max(found[at].seconds, execution.seconds)
            found[at] = replace(found[at], seconds=longer)
    return found


def _is_same(run: PastRun, execution: journal.Execution, task: Task) -> bool:
    begin = execution.started - _SLACK_SECONDS
    end = execution.started + execution.seconds + _SLACK_SECONDS
    return run.task == task and begin <= run.finished <= end
