"""How long stages took before: a record of each past execution that left one.

Three places know of them. Every artifact has a file of wall times beside it; DVC's run cache
holds those of earlier executions, with the params they were made with; the journal adds what
the start of processes took. An execution that several of them tell of counts once.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from kdci.store.layout import Layout
from pipelines.explaining.differences import (
    CachePlaces,
    Comparison,
    locked_params,
    read_yaml_quickly,
)
from pipelines.explaining.work_size import num_steps
from pipelines.graph.dag import Dag, DagStage
from pipelines.running import journal

_SLACK_SECONDS = 2.0
"""By how much the clocks of an execution's two records may disagree."""
_SECTION = re.compile(r"^(\w+):", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """What a stage's command line says of it.

    Attributes:
        module: The stage's module: `stages.distill`.
        flags: Values of its options, by name; of those that have none: "".
    """

    module: str
    flags: Mapping[str, str]

    @classmethod
    def parse(cls, line: str) -> Command | None:
        """Read ``python -m stages.X --axis value ...``; None: it is another kind of command."""
        words = shlex.split(line)
        if words[1:2] != ["-m"] or len(words) < 3:
            return None
        flags: dict[str, str] = {}
        for word, following in pairwise([*words[3:], "--"]):
            if word.startswith("--"):
                flags[word[2:]] = "" if following.startswith("--") else following
        return cls(words[2], flags)


@dataclass(frozen=True)
class PastRun:
    """One execution that ended well.

    Attributes:
        command: What ran.
        started: Unix seconds.
        finished: Unix seconds.
        seconds: Wall time.
        loop_seconds: What of that went with the number of steps.
        steps: Number of its steps; None: not known, or there is no such number.
    """

    command: Command
    started: float
    finished: float
    seconds: float
    loop_seconds: float = 0.0
    steps: int | None = None


def read_past_runs(layout: Layout, dag: Dag, comparison: Comparison) -> list[PastRun]:
    """Return the past executions of the layout's preset, each once."""
    found: dict[tuple[str, float], PastRun] = {}
    times_folder = f"artifacts/{layout.preset}/"
    for run in (
        *_of_run_cache(comparison.cache, times_folder),
        *_of_artifacts(layout.root, dag, comparison),
    ):
        found[repr(run.command), run.started] = run
    return _with_journal(list(found.values()), journal.read(layout), _Namer(layout, dag))


# -- wall times -------------------------------------------------------------------------------


def _of_artifacts(root: Path, dag: Dag, comparison: Comparison) -> Iterator[PastRun]:
    for name, stage in dag.stages.items():
        command = Command.parse(stage.command)
        entry = comparison.lock.get(name)
        file = _times_file(stage.outs)
        if command is not None and entry is not None and file is not None:
            run = _read_times(root / file, command, locked_params(entry))
            if run is not None:
                yield run


def _of_run_cache(cache: CachePlaces, folder: str) -> Iterator[PastRun]:
    for file in sorted(cache.runs.glob("*/*/*")):
        entry = _read_run(file)
        outs = {out["path"]: str(out.get("md5", "")) for out in entry.get("outs") or ()}
        path = _times_file(outs)
        command = Command.parse(str(entry.get("cmd", "")))
        if path is None or command is None or not path.startswith(folder):
            continue
        digest = outs[path]
        times = cache.files / digest[:2] / digest[2:]
        run = _read_times(times, command, locked_params(entry))
        if run is not None:
            yield run


def _read_run(file: Path) -> dict[str, Any]:
    """Read an entry of the run cache, but for its long list of dependencies."""
    try:
        text = file.read_text(encoding="utf-8")
        starts = [match.start() for match in _SECTION.finditer(text)]
        ends = [*starts[1:], len(text)]
        sections = [text[a:b] for a, b in zip(starts, ends, strict=True)]
        wanted = "".join(part for part in sections if not part.startswith("deps:"))
        return read_yaml_quickly(wanted)
    except (OSError, ValueError, YAMLError):
        return {}  # DVC removes a damaged entry by itself


def _times_file(outs: Any) -> str | None:
    """Return which of a stage's outputs has its wall times; the report's has none."""
    return next((out for out in outs if "/timings/" in out and out.endswith(".json")), None)


def _read_times(file: Path, command: Command, params: Mapping[str, Any]) -> PastRun | None:
    try:
        times = json.loads(file.read_text(encoding="utf-8"))
        return PastRun(
            command,
            float(times["started"]),
            float(times["finished"]),
            float(times["seconds"]),
            float(times["loop_seconds"]),
            num_steps(command.module, command.flags.get("method", ""), params),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


# -- the journal ------------------------------------------------------------------------------


class _Namer:
    """Tells what an execution ran.

    Stages of pairs are named by a place in the list, which may be another pair's by now: what
    they left tells them apart, and one whose result is gone is left out.
    """

    def __init__(self, layout: Layout, dag: Dag) -> None:
        self._layout = layout
        self._dag = dag

    def command(self, execution: journal.Execution) -> Command | None:
        group, _, axes = execution.stage.partition("@")
        if not axes.startswith("pair"):
            stage = self._dag.stages.get(execution.stage)
        else:
            stage = self._by_card.get((group, execution.card)) if execution.card else None
        return Command.parse(stage.command) if stage else None

    @cached_property
    def _by_card(self) -> dict[tuple[str, str], DagStage]:
        kinds = {"distill": "student", "evaluate": "evaluation"}
        return {
            (stage.group, journal.card_of(self._layout.root / stage.outs[0], kind)): stage
            for stage in self._dag.stages.values()
            for kind in [kinds.get(stage.group.partition("_")[0], "")]
            if kind and stage.group.endswith("_pair")
        }


def _with_journal(
    runs: list[PastRun], executions: list[journal.Execution], namer: _Namer
) -> list[PastRun]:
    """Add what the journal knows: the start of processes, and runs that left no wall times."""
    found = list(runs)
    for execution in executions:
        command = namer.command(execution)
        if execution.outcome != "completed" or command is None:
            continue
        at = next((i for i, run in enumerate(found) if _is_same(run, execution, command)), None)
        if at is None:
            ended = execution.started + execution.seconds
            found.append(PastRun(command, execution.started, ended, execution.seconds))
        else:
            # The stage's own count holds the time before an interruption, the journal's does not.
            longer = max(found[at].seconds, execution.seconds)
            found[at] = replace(found[at], seconds=longer)
    return found


def _is_same(run: PastRun, execution: journal.Execution, command: Command) -> bool:
    begin = execution.started - _SLACK_SECONDS
    end = execution.started + execution.seconds + _SLACK_SECONDS
    return run.command == command and begin <= run.finished <= end


def command_of(stage: DagStage) -> Command:
    """Return the parsed command of a stage; one of another form stands for itself."""
    return Command.parse(stage.command) or Command(stage.command, {})
