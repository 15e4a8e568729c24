"""`kdci sweep`: the stages that are not up to date, spread over devices and machines by Ray Tune.

It goes along DVC's graph in waves: what has all its parents is a trial of one Tune run. Results
go to their own places and the runner alone records them in DVC, so that `dvc repro` then skips
them. The files are the truth, not Ray's state: whatever is killed, the same command goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.graph.build import Graph
from kdci.graph.standing import differences
from kdci.store.layout import Layout
from pipelines.flow.telemetry import switch_off
from pipelines.graph.current import current_graph
from pipelines.graph.dag import Dag, Verdict, read_dag
from pipelines.running.limits import default_limit, require_at_least
from pipelines.running.run_display import show_record, warn
from pipelines.running.scheduler import Scheduler
from pipelines.running.stage_process import Outcome, StageProcess, State
from pipelines.running.stopping import StopRequest
from pipelines.running.workspace import await_stages, only_runner
from pipelines.sweeping import attempts
from pipelines.sweeping.attempts import log_of, prepare_folder
from pipelines.sweeping.dvc_record import commit, recording, restorable
from pipelines.sweeping.guarded import Guard, deciding
from pipelines.sweeping.outcomes import Outcomes
from pipelines.sweeping.ray_session import ray_session
from pipelines.sweeping.resources import Resources, choose_resources, complaints, nodes
from pipelines.tracking.recorder import Recorder

METRIC_SECONDS = 30.0
"""Between two lines of a stage's metrics on the terminal."""
ORPHAN_SECONDS = 30.0
"""How long to wait for stages of ended workers, which save their state."""


@dataclass
class Sweep:
    """A sweep of a project; what it is asked for is told by `kdci sweep --help`.

    Attributes:
        root: The project folder: on a cluster, one that all nodes share under this path.
        max_failures: How often a trial is started again after its worker or node died.
    """

    root: Path
    targets: Sequence[str] = ()
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None
    max_failures: int = 3
    allow_no_token: bool = False
    track: bool = True

    def __post_init__(self) -> None:
        wanted = {"--max-concurrent": (self.max_concurrent, 1)}
        require_at_least({**wanted, "--max-failures": (self.max_failures, 0)})
        self.root = self.root.absolute()
        self._stop = StopRequest()
        self._name = time.strftime("sweep-%Y%m%d-%H%M%S-") + str(os.getpid())
        self._num_waves = 0
        self._told: dict[str, float] = {}
        self._resources: Resources | None = None

    def run(self) -> int:
        """Run what is not up to date, and return the exit code: 0, or of the gravest failure.

        Raises:
            UserError: Params, data, a target or the cluster do not fit: nothing was run.
            BusyError: Somebody else runs stages here.
        """
        switch_off()
        with only_runner(Layout(self.root, ""), "kdci sweep"), self._stop.installed():
            params = load_params(self.root / "params.yaml")
            self._layout = layout = Layout(self.root, params.preset)
            verdicts = self._read()[0].verdicts.values()
            total = sum(verdict is not Verdict.unchanged for verdict in verdicts)
            if not total:
                typer.echo("everything is up to date")
                return self._stop.exit_code
            from pipelines.checking.checks import require_no_problems

            # Which GPUs there are is Ray's to say.
            require_no_problems(params, layout, leave_out=["runtime.device"])
            self._folder = prepare_folder(layout)
            self._outcomes = Outcomes(layout, self._folder, total, self._stop)
            with ExitStack() as stack:
                recorder = stack.enter_context(Recorder(self.root)) if self.track else None
                try:
                    self._run_waves(params)
                    if not self._stop:
                        self._run_rest(params)
                finally:
                    await_stages(layout, ORPHAN_SECONDS)
                self._outcomes.tell_end()
                if recorder is not None:
                    show_record(recorder.finish(), "sweep")
            return self._outcomes.exit_code

    def _read(self) -> tuple[Dag, Graph]:
        """Return DVC's part of what is asked for, and the graph, both of the params as of now."""
        graph = current_graph(self.root)
        return read_dag(self.root).select(self.targets), graph

    def _run_waves(self, params: Params) -> None:
        with ExitStack() as session:
            while not self._stop:
                graph, names = self._next_wave()
                if not names or self._stop:
                    break
                self._wave(graph, names, self._connect(session, params))

    # -- what needs no trial ------------------------------------------------------------------

    def _next_wave(self) -> tuple[Graph, list[str]]:
        """Return the stages to train next, once all that needs no training has its result."""
        while True:
            dag, graph = self._read()
            ready = ready_stages(dag, trials_of(graph))
            ready = [name for name in ready if name not in self._outcomes.by_stage]
            if self._stop or not (self._record_finished(ready) or self._restore(ready)):
                return graph, ready

    def _record_finished(self, names: Sequence[str]) -> bool:
        """Record what a killed sweep left finished; tell whether there was anything."""
        found = differences(self.root, names)
        finished = [name for name, problem in found.items() if problem is None]
        for name, problem in commit(self.root, finished).items():
            self._outcomes.recorded(name, problem)
        return bool(finished)

    def _restore(self, ready: Sequence[str]) -> bool:
        """Take results from DVC's run cache; tell whether there were any."""
        names = restorable(self.root, ready)
        for name in names:
            if not self._stop:
                self._run_here(name)
        return bool(names)

    def _run_here(self, name: str) -> None:
        process = StageProcess(self.root, name, lambda line: None)
        with self._stop.heard_by(lambda number: process.stop()):
            self._outcomes.note(process.run())

    # -- trials -------------------------------------------------------------------------------

    def _connect(self, session: ExitStack, params: Params) -> Resources:
        """Connect to Ray, once, and decide what each trial gets."""
        if self._resources is not None:
            return self._resources
        session.enter_context(ray_session(address=self.address, allow_no_token=self.allow_no_token))
        known = nodes()
        self._resources = choose_resources(
            params, known, cpus=self.cpus_per_trial, gpus=self.gpus_per_trial
        )
        for line in complaints(params, known, self._resources):
            warn(line)
        cpus, gpus = self._resources.cpus, self._resources.gpus
        typer.echo(f"Ray: {len(known)} nodes; {cpus:g} CPUs and {gpus:g} GPUs a trial")
        return self._resources

    def _wave(self, graph: Graph, names: Sequence[str], resources: Resources) -> None:
        from pipelines.sweeping.waves import run_wave

        self._num_waves += 1
        guard = Guard(self.root, deciding(os.environ), resources.gpu_share)
        nodes = [graph.nodes[name] for name in names]
        for name in names:
            attempts.forget(self._folder, name)
            log_of(self._folder, name).unlink(missing_ok=True)
        typer.echo(f"wave {self._num_waves}: {len(names)} stages")
        with recording(self.root, self._outcomes.recorded) as record:
            run_wave(
                f"{self._name}-{self._num_waves}",
                {node.name: (f"stages.{node.stage}", node.cell) for node in nodes},
                guard,
                layout=self._layout,
                folder=self._folder,
                resources=resources,
                max_concurrent=self.max_concurrent,
                max_failures=self.max_failures,
                stop=self._stop,
                on_metrics=self._show_metrics,
                on_end=lambda name, report: self._ended(name, report, record),
            )
        self._settle_missed(names)

    def _ended(self, name: str, report: str, record: Callable[[str], None]) -> None:
        """Have a result recorded, or note the failure, when Ray says that a trial has ended."""
        history = attempts.read_history(self._folder, name)
        if history is not None and history.exit_code == 0:
            record(name)
        else:
            self._outcomes.without_result(name, report)

    def _settle_missed(self, names: Sequence[str]) -> None:
        """Look at the files for what Ray did not tell: it was stopped, or it lost a trial."""
        await_stages(self._layout, ORPHAN_SECONDS)
        self._record_finished([name for name in names if name not in self._outcomes.by_stage])
        for name in names:
            if name not in self._outcomes.by_stage:
                self._outcomes.without_result(name)

    def _show_metrics(self, name: str, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told.setdefault(name, now) < METRIC_SECONDS:
            return
        self._told[name] = now
        own = {key: value for key, value in metrics.items() if key == "step" or "loss" in key}
        told = ", ".join(f"{key} {value:.4g}" for key, value in own.items())
        typer.echo(f"{time.strftime('%H:%M:%S')}  {name}: {told}")

    # -- what comes after ---------------------------------------------------------------------

    def _run_rest(self, params: Params) -> None:
        """Run evaluations and the report on this machine, as far as all they need is there."""
        dag, graph = self._read()
        rest, lost = split_rest(dag, trials_of(graph))
        for name in lost:
            if name not in self._outcomes.by_stage:
                what = "what it is made from has no result"
                self._outcomes.note(Outcome(name, State.not_run, what))
        scheduler = Scheduler(
            rest,
            lambda name, hear: StageProcess(self.root, name, hear),
            limit=default_limit(params),
            on_outcome=self._outcomes.note,
        )
        with self._stop.heard_by(scheduler.stop):
            scheduler.run_all()


def trials_of(graph: Graph) -> set[str]:
    """Return the stages that are trials; evaluations and the report run on the runner's machine."""
    return {node.name for node in graph.makers if node.stage != "evaluate"}


def ready_stages(dag: Dag, trials: Collection[str]) -> list[str]:
    """Return the stages that can be trained now: changed, all that they are made from unchanged.

    Those that no trial makes are for the runner's own machine.
    """
    verdicts = dag.verdicts
    return [
        name
        for name, stage in dag.stages.items()
        if verdicts[name] is Verdict.changed
        and name in trials
        and all(verdicts[parent] is Verdict.unchanged for parent in stage.upstream)
    ]


def split_rest(dag: Dag, trials: Collection[str]) -> tuple[Dag, list[str]]:
    """Return what is left to run on the runner's machine, and what can not be run.

    What a trial could have made, and is missing after the last wave, has failed.
    """
    waiting = [n for n, verdict in dag.verdicts.items() if verdict is not Verdict.unchanged]
    missing = {name for name in waiting if name in trials}
    lost = {*missing, *dag.descendants(missing)}
    rest = {name for name in waiting if name not in lost}
    return dag.part(rest), [name for name in dag.stages if name in lost]
