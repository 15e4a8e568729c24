"""A run of the project's stages: what is to be done, who does it, and what came of it.

``kdci run`` and the Prefect flow share it; without Prefect it does the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import KdciError, UserError
from kdci.graph.build import Graph
from kdci.store.layout import Layout
from pipelines.graph.current import current_graph
from pipelines.graph.dag import Dag, Verdict, read_dag
from pipelines.params.edit import prepare
from pipelines.running import journal
from pipelines.running.exit_codes import gravest
from pipelines.running.run_display import counted
from pipelines.running.scheduler import Scheduler
from pipelines.running.stage_process import Outcome, StageProcess, State
from pipelines.running.workspace import only_runner

Line = Callable[[str, str], None]
_ENDED_BADLY = (State.failed, State.stopped)


@dataclass
class Run:
    """A run in progress; it holds the workspace.

    Attributes:
        links: Ids of other tools by stage, for the journal; "" holds for every stage.
    """

    graph: Graph
    dag: Dag
    scheduler: Scheduler
    limit: int
    links: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def params(self) -> Params:
        """The params it began with."""
        return self.graph.params

    @property
    def layout(self) -> Layout:
        """Its places."""
        return self.graph.layout

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes so far, in the graph's order."""
        return list(self.scheduler.outcomes.values())

    @property
    def exit_code(self) -> int:
        """That of the signal that stopped it, or of the gravest failure; 0: all have results."""
        if self.scheduler.stopped_by is not None:
            return 128 + self.scheduler.stopped_by
        return gravest(o.exit_code for o in self.outcomes if o.state in _ENDED_BADLY)

    def summary(self) -> str:
        """Return how many stages came to what, in one line."""
        return f"{len(self.dag.stages)} stages: {', '.join(counted(self.outcomes))}"


@contextmanager
def open_run(
    root: Path,
    *,
    runner: str,
    preset: str | None = None,
    seeds: list[int] | None = None,
    targets: Sequence[str] = (),
    limit: int | None = None,
    on_line: Line = lambda stage, line: None,
    on_outcome: Callable[[Run, Outcome], None] = lambda run, outcome: None,
) -> Iterator[Run]:
    """Take the workspace and look what is to be done.

    Args:
        root: The project folder.
        runner: `prefect` or `plain`, for the journal.
        preset: Preset to make params.yaml of first.
        seeds: Student seeds to set in it first.
        targets: What to run, with what it needs; none: everything.
        limit: Stages at work at a time; None: as many as there are cores for their threads.
        on_line: Hears every line of every stage.
        on_outcome: Hears how every stage ended.

    Raises:
        UserError: Params, data, teacher or a target do not fit: nothing was run.
        BusyError: Somebody else runs stages here.
    """
    require_at_least({"--limit": (limit, 1)})
    with only_runner(Layout(root, ""), "kdci run"):
        put_back = prepare(root, preset=preset, seeds=seeds)
        try:
            params = load_params(root / "params.yaml")
            graph = current_graph(root, params)
            dag = _checked_dag(params, graph.layout, targets)
        except BaseException:
            put_back()  # nothing is run: nothing has changed
            with suppress(KdciError):
                current_graph(root)
            raise

        def settled(outcome: Outcome) -> None:
            links = {**run.links.get("", {}), **run.links.get(outcome.stage, {})}
            node = graph.nodes.get(outcome.stage)
            journal.note(graph.layout, outcome, node, runner=runner, links=links)
            on_outcome(run, outcome)

        chosen = limit or default_limit(params)
        scheduler = Scheduler(
            dag,
            lambda name, hear: StageProcess(root, name, hear),
            limit=chosen,
            on_line=on_line,
            on_outcome=settled,
        )
        run = Run(graph, dag, scheduler, chosen)
        yield run


def _checked_dag(params: Params, layout: Layout, targets: Sequence[str]) -> Dag:
    """Return the stages to run, after a look for what would stop one."""
    from pipelines.checking.checks import require_no_problems

    dag = read_dag(layout.root).select(targets)
    if any(verdict is not Verdict.unchanged for verdict in dag.verdicts.values()):
        require_no_problems(params, layout)
    return dag


def require_at_least(options: Mapping[str, tuple[int | None, int]]) -> None:
    """Require of options, those that are not None, that they reach the least each may be.

    Raises:
        UserError: One is below.
    """
    for option, (value, least) in options.items():
        if value is not None and value < least:
            raise UserError(option, f"is {value}", f"give {least} or more")


def default_limit(params: Params) -> int:
    """Return how many stages fit this machine's cores: more would slow each other down."""
    threads, device = params.runtime.threads, params.runtime.device
    if isinstance(threads, str) or device.startswith("cuda"):
        return 1
    return max(1, _available_cores() // threads)


def crowding(params: Params, limit: int) -> str | None:
    """Return what is wrong with so many stages at a time: more threads than cores; None: nothing.

    The threads themselves stay as they are: results depend on them, on the limit they do not.
    """
    if limit == 1 or params.runtime.device.startswith("cuda"):
        return None
    cores, threads = _available_cores(), params.runtime.threads
    each = cores if isinstance(threads, str) else threads
    if limit * each <= cores:
        return None
    return (
        f"{limit} stages at a time have {each} threads each (runtime.threads: {threads}) on "
        f"{cores} cores and slow each other down; lower runtime.threads or --limit"
    )


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
