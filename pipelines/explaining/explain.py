"""`kdci explain`: why a stage would run again, what follows from that, and what it will take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kdci.graph.cells import LOOKED_FILE
from kdci.store.layout import Layout
from pipelines.explaining.costs import ExpectedTime, expected_time, wall_seconds
from pipelines.explaining.differences import CODE, Comparison, Difference, compare
from pipelines.explaining.forecast import Fate
from pipelines.explaining.past_runs import PastRun, read_past_runs
from pipelines.explaining.tasks import Task, num_steps
from pipelines.graph.dag import Dag, DagStage, read_dag
from pipelines.params.spelled_out import values_at


@dataclass(frozen=True)
class Explained:
    """One stage, explained.

    Attributes:
        name: Its name in DVC.
        group: Its entry of ``dvc.yaml``.
        fate: What would become of it.
        differences: Why, for what differs in itself.
        follows_from: Why, where nothing else does: stages with a difference, earlier on.
        made_from: The stages that its inputs come from.
        inputs: Its params blocks.
        code: Its code by the names in cells.yaml, and files that no stage makes.
        expected_time: What it will take; None: not known.
    """

    name: str
    group: str
    fate: Fate
    differences: tuple[Difference, ...] = ()
    follows_from: tuple[str, ...] = ()
    made_from: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    expected_time: ExpectedTime | None = None


@dataclass(frozen=True)
class Cost:
    """What the explained stages and those that follow take together.

    Attributes:
        num_stages: How many there are.
        seconds: One after another, those left out that are not known.
        limit: How many are to run at a time.
        seconds_at_limit: With so many at a time.
        unknown: Stages that nothing is known of.
    """

    num_stages: int
    seconds: float
    limit: int
    seconds_at_limit: float
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What `kdci explain` has to say.

    Attributes:
        stages: What was asked for; nothing in particular: all that has a difference.
        following: What may run because of these.
        cost: What all of them take.
        num_known: Number of stages in the project.
    """

    stages: tuple[Explained, ...]
    following: tuple[Explained, ...]
    cost: Cost
    num_known: int


def explain(
    layout: Layout, tasks: Mapping[str, Task], targets: Sequence[str] = (), *, limit: int = 1
) -> Explanation:
    """Explain stages; nothing is run and nothing written.

    Args:
        layout: The project's places.
        tasks: What the stages work on, by name.
        targets: Stages, entries of dvc.yaml, or patterns of either with `*`; none: all that
            would run.
        limit: How many stages are to run at a time.

    Raises:
        UserError: A target is no stage, or dvc.yaml or params.yaml can not be read.
    """
    dag = read_dag(layout.root)
    asked = dag.named(targets)
    comparison = compare(layout.root, dag)
    runs = read_past_runs(layout, dag, tasks, comparison)
    explainer = _Explainer(dag, tasks, comparison, runs)
    explained = [explainer.explain(name) for name in (asked or explainer.changed)]
    changing = [one.name for one in explained if one.fate is not Fate.up_to_date]
    after = dag.descendants(changing)
    told = {one.name for one in explained}
    following = [explainer.explain(name) for name in dag.stages if name in after - told]
    following = [one for one in following if one.fate is not Fate.up_to_date]
    cost = _cost(dag, [*explained, *following], limit)
    return Explanation(tuple(explained), tuple(following), cost, len(dag.stages))


@dataclass(frozen=True)
class _Explainer:
    dag: Dag
    tasks: Mapping[str, Task]
    comparison: Comparison
    runs: Sequence[PastRun]

    @cached_property
    def changed(self) -> list[str]:
        return [name for name in self.dag.stages if self._own_differences(name)]

    def explain(self, name: str) -> Explained:
        stage, fate = self.dag.stages[name], self.comparison.fates[name]
        own = self._own_differences(name)
        return Explained(
            name,
            stage.group,
            fate,
            differences=own,
            follows_from=() if own else self._roots(name),
            made_from=stage.upstream,
            inputs=tuple(values_at(stage.params, self.comparison.params)),
            code=_code(stage, self.dag),
            expected_time=None if fate is Fate.restored else self._expected_time(stage),
        )

    def _own_differences(self, name: str) -> tuple[Difference, ...]:
        """Return what differs but for what other stages are about to make anew."""
        fates = self.comparison.fates
        return tuple(
            one
            for one in self.comparison.found.get(name, ())
            if all(fates[maker] is Fate.up_to_date for maker in one.made_by)
        )

    def _roots(self, name: str) -> tuple[str, ...]:
        """Return what a stage is made from that has a difference, at any distance."""
        earlier = self.dag.ancestors([name])
        return tuple(other for other in self.changed if other in earlier)

    def _expected_time(self, stage: DagStage) -> ExpectedTime | None:
        task = self.tasks.get(stage.name)
        if task is None:
            return None
        params = values_at(stage.params, self.comparison.params)
        return expected_time(task, num_steps(task, params), self.runs)


def _code(stage: DagStage, dag: Dag) -> tuple[str, ...]:
    made = [out for parent in stage.upstream for out in dag.stages[parent].outs]
    files = [dep for dep in stage.deps if not any(out.startswith(dep) for out in made)]
    files = [file for file in files if file != LOOKED_FILE]
    names = [key.removeprefix(CODE) for key in stage.params if key.startswith(CODE)]
    return (*names, *files)


def _cost(dag: Dag, stages: Iterable[Explained], limit: int) -> Cost:
    running = {one.name: one for one in stages if one.fate in (Fate.runs, Fate.may_run)}
    seconds = {
        name: one.expected_time.seconds
        for name, one in running.items()
        if one.expected_time is not None
    }
    unknown = tuple(name for name in running if name not in seconds)
    at_limit = wall_seconds(dag, seconds, limit)
    return Cost(len(running), sum(seconds.values()), limit, at_limit, unknown)
