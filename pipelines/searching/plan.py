"""What a trial runs, and what it takes from the workspace as it is.

Of all stages that a student is made by, those run again that a searched key reaches, and those
made from them. The others' artifacts are the workspace's own: up to date, and only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.config.params import Grid, Params
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.errors import CombinedUserError, UserError
from kdci.graph.build import Graph
from kdci.graph.cells import sources_of
from kdci.graph.node import Node
from kdci.store.artifacts import read_card
from kdci.store.layout import Cell
from pipelines.graph.dag import Dag, Verdict
from pipelines.searching.results import StageCall

FIXED = {
    "runtime": "is the same for all trials, or their scores could not be compared",
    "data": "is the dataset, which is given",
    "pool": "decides which substitutes are held out, and with them what is scored",
    "distill": "decides when students are scored",
    "budget": "is the same for all trials: whoever takes more steps would win by that alone",
    "backbone": "decides the first layers of the networks, which are given",
    "teacher": "belongs to the teacher, which is given",
    "other": "belongs to the other model, which is given",
    "shift.base": "names a pool, which is given",
}
"""Blocks that a student depends on and that no search changes.

All that a teacher depends on is among them: no trial makes one, and a finished one is adopted by
the workspace alone.
"""


@dataclass(frozen=True)
class Subject:
    """Whose hyper-parameters are searched.

    Attributes:
        teacher: Backbone.
        student: Backbone.
        method: A method, or a pool with a known shift.
        variant: The arm.
        pool_seeds: Pools; every one meets every seed.
        seeds: Student seeds.
    """

    teacher: str
    student: str
    method: str
    variant: str
    pool_seeds: tuple[int, ...]
    seeds: tuple[int, ...]

    @property
    def cells(self) -> list[Cell]:
        """The replicates: one student each."""
        return [
            Cell(self.teacher, self.student, self.method, self.variant, pool_seed, seed)
            for pool_seed in self.pool_seeds
            for seed in self.seeds
        ]

    def grid(self, params: Params) -> dict[str, list[Any]]:
        """Return the params' grid cut down to these students."""
        nothing: dict[str, list[Any]] = {"controls": [], "arms": [], "others": []}
        arms: dict[str, list[Any]] = {}
        if self.method in params.grid.shifts:
            shift_arms = list(dict.fromkeys(("vanilla", self.variant)))
            arms = {"shifts": [self.method], "shift_arms": shift_arms}
        else:
            arms = {"shifts": [], "shift_arms": []}
            if self.variant in FURTHER_ARMS:
                arms["arms"] = [self.variant]
            if self.variant == OTHER_ARM:
                arms["others"] = [params.grid.other_of(self.teacher, self.student)]
        return {
            **nothing,
            "teachers": [self.teacher],
            "students": [self.student],
            "pairs": [],
            "other_pairs": [],
            "methods": [params.base_of(self.method)],
            "pool_seeds": list(self.pool_seeds),
            "seeds": list(self.seeds),
            **arms,
        }


def choose_subject(
    params: Params,
    *,
    method: str | None = None,
    variant: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    pool_seeds: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> Subject:
    """Return whose hyper-parameters are searched; what is not said is the grid's first.

    Raises:
        CombinedUserError: Something is not of the grid.
    """
    grid = params.grid
    subject = Subject(
        teacher=teacher or grid.teachers[0],
        student=student or _first_student(grid, teacher or grid.teachers[0]),
        method=method or grid.methods[0],
        variant=variant or "kdci",
        pool_seeds=tuple(pool_seeds or grid.pool_seeds[:1]),
        seeds=tuple(seeds or grid.seeds[:1]),
    )
    problems = list(_misfits(subject, grid))
    if problems:
        raise CombinedUserError(problems)
    return subject


def _students(grid: Grid, teacher: str) -> list[str]:
    return [student for of, student in grid.all_pairs if of == teacher]


def _first_student(grid: Grid, teacher: str) -> str:
    return next(iter(_students(grid, teacher)), grid.all_pairs[0][1])


def _misfits(subject: Subject, grid: Grid) -> Iterator[UserError]:
    arms = [*BASE_ARMS, *FURTHER_ARMS, *([OTHER_ARM] if grid.others else [])]
    if subject.method in grid.shifts:
        arms = [arm for arm in arms if arm != OTHER_ARM]
    allowed = {
        "--teacher": (subject.teacher, grid.teachers),
        "--student": (subject.student, _students(grid, subject.teacher)),
        "--method": (subject.method, (*grid.methods, *grid.shifts)),
        "--variant": (subject.variant, arms),
    }
    for option, (value, names) in allowed.items():
        if value not in names:
            what = f"{value} can not be searched with these params"
            yield UserError(option, what, f"one of {', '.join(names)}")
    for option, numbers in (("--pool-seeds", subject.pool_seeds), ("--seeds", subject.seeds)):
        if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
            yield UserError(option, f"{list(numbers)} is no list of distinct seeds", "write 0,1")


@dataclass(frozen=True)
class SearchPlan:
    """What every trial of a search has in common.

    Attributes:
        stages: What it runs, in order.
        upstream: Places of the artifacts that it takes from the workspace.
        links: Further places there that its stages read.
        given: The params that its students depend on, the searched ones left out.
    """

    stages: tuple[StageCall, ...]
    upstream: tuple[str, ...]
    links: tuple[str, ...]
    given: dict[str, Any]


def plan_trials(graph: Graph, subject: Subject, keys: Iterable[str], dag: Dag) -> SearchPlan:
    """Work out what trials run.

    Args:
        graph: Of the params that trials start from, with the subject's grid, in the workspace.
        subject: Whose hyper-parameters are searched.
        keys: The searched keys.
        dag: The workspace's stages, with their status.

    Raises:
        CombinedUserError: A key changes nothing of these students or must not change, or an
            artifact that trials share is not up to date.
    """
    keys = list(keys)
    chain = _chain(graph, subject)
    reached = _reached(chain, keys)
    problems = list(_misplaced(graph.params, subject, chain, keys))
    if problems:
        raise CombinedUserError(problems)
    own = [node for node in chain if node.name in reached or node.stage == "distill"]
    shared = [node for node in chain if node not in own]
    _require_up_to_date(graph, shared, dag)
    blocks = {key: None for node in chain for key in node.blocks.values()}
    given = {
        key: value
        for key, value in leaves(graph.params, [*blocks, "evaluate"]).items()
        if key not in set(keys)
    }
    return SearchPlan(
        stages=tuple(_call(graph, node) for node in own),
        upstream=tuple(_place(graph, node.artifact) for node in shared),
        links=_links(graph, own),
        given=given,
    )


def leaves(params: Params, blocks: Iterable[str]) -> dict[str, Any]:
    """Return the values below blocks of the params, by dotted key."""
    found: dict[str, Any] = {}

    def walk(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                walk(f"{key}.{name}", inner)
        else:
            found[key] = value

    for key, value in params.blocks(*blocks).items():
        walk(key, value)
    return found


def contents(graph: Graph, places: Iterable[str]) -> dict[str, str]:
    """Return the content hash on the card of each artifact, by its place below the root.

    Raises:
        UserError: One is not there.
        IntegrityError: A card is damaged.
    """
    nodes = {place: graph.by_artifact[graph.layout.root / place] for place in places}
    return {
        place: str(read_card(node.artifact, kind=node.kind)["content"])
        for place, node in nodes.items()
    }


def fingerprints(graph: Graph, stages: Iterable[StageCall]) -> dict[str, str]:
    """Return by stage the hash of the code that a trial's score depends on, evaluate's included."""
    nodes = [graph.by_artifact[graph.layout.root / call.artifact] for call in stages]
    student = next(node.student for node in nodes if node.student is not None)
    sources = sources_of(graph)
    place = graph.layout.evaluation(student.teacher, student.student, student.method)
    nodes.append(graph.by_artifact[place])
    return {node.name: sources.fingerprint(node.code) for node in nodes}


def _chain(graph: Graph, subject: Subject) -> list[Node]:
    """Return the nodes that the students are made by, parents first."""
    wanted: set[str] = set()
    waiting = [graph.layout.student(cell) for cell in subject.cells]
    while waiting:
        node = graph.by_artifact.get(waiting.pop())
        if node is not None and node.name not in wanted:
            wanted.add(node.name)
            waiting += [parent.path for parent in node.parents.values()]
    return [node for node in graph.nodes.values() if node.name in wanted]


def _reached(chain: Sequence[Node], keys: Sequence[str]) -> set[str]:
    """Return the names of the nodes that come out differently for other values of the keys."""
    reached: set[str] = set()
    places: set[Path] = set()
    for node in chain:  # parents come first
        own = any(_lies_in(key, block) for key in keys for block in node.blocks.values())
        if own or places.intersection(parent.path for parent in node.parents.values()):
            reached.add(node.name)
            places.add(node.artifact)
    return reached


def _lies_in(key: str, block: str) -> bool:
    return key == block or key.startswith(f"{block}.")


def _misplaced(
    params: Params, subject: Subject, chain: Sequence[Node], keys: Sequence[str]
) -> Iterator[UserError]:
    """Find keys that must not change, and those whose change would not be seen."""
    blocks = {block for node in chain for block in node.blocks.values()}
    arm = ARMS[subject.variant]
    fixed_by_arm = {f"compensation.{name.rstrip('_')}" for name in arm.changes}
    for key in keys:
        reason = next((why for block, why in FIXED.items() if _lies_in(key, block)), None)
        if reason is not None:
            yield UserError(key, reason, "leave it out of the space")
        elif not any(_lies_in(key, block) for block in blocks):
            who = f"a {subject.variant} student of {subject.method}"
            yield UserError(key, f"changes nothing of {who}", "leave it out of the space")
        elif key in fixed_by_arm:
            what = f"is set by the arm {subject.variant} itself"
            yield UserError(key, what, "leave it out of the space")
        elif _lies_in(key, "dictionary") and params.dictionary.artifact is not None:
            what = "changes nothing of a dictionary that is adopted (dictionary.artifact)"
            yield UserError(key, what, "set dictionary.artifact to null")
        elif key == "dictionary.artifact":
            yield UserError(key, "is another dictionary's place", "leave it out of the space")
        else:
            yield from _overridden(params, subject, key)


def _overridden(params: Params, subject: Subject, key: str) -> Iterator[UserError]:
    """Find a value of a method that is not the one which holds for this teacher and student."""
    if not key.startswith("methods."):
        return
    _, method, *place, field = key.split(".")
    if len(place) > 2 or place[:1] not in ([], ["by_teacher"], ["by_student"]):
        return  # open_world.num_images: no override has such a value
    block = params.methods[method]
    owners: dict[tuple[str, ...], Mapping[str, object]] = {
        ("by_student", subject.student): block.by_student.get(subject.student, {}),
        ("by_teacher", subject.teacher): block.by_teacher.get(subject.teacher, {}),
        (): {field: None},
    }
    holding = next(owner for owner, values in owners.items() if field in values)
    if tuple(place) == holding:
        return
    if tuple(place) not in owners:
        what = f"changes nothing of {subject.teacher} -> {subject.student}"
        yield UserError(key, what, "leave it out of the space")
    else:
        better = ".".join(["methods", method, *holding, field])
        yield UserError(key, f"is set by {'.'.join(holding)} itself", f"search {better}")


def _call(graph: Graph, node: Node) -> StageCall:
    return StageCall(
        name=node.name,
        stage=node.stage,
        cell=node.cell,
        artifact=_place(graph, node.artifact),
        student=None if node.student is None else node.student.asdict(),
    )


def _place(graph: Graph, path: Path) -> str:
    return path.relative_to(graph.layout.root).as_posix()


def _require_up_to_date(graph: Graph, nodes: Iterable[Node], dag: Dag) -> None:
    problems, stale = [], []
    verdicts = dag.verdicts
    for node in nodes:
        if node.name not in dag.stages:
            what = "trials are made from it, and no stage of params.yaml makes it"
            place = _place(graph, node.artifact)
            problems.append(UserError(place, what, "add its seed to the grid"))
        elif verdicts[node.name] is not Verdict.unchanged:
            stale.append(node.name)
    if stale:
        what = "trials are made from it, and it is not up to date"
        problems.append(UserError(stale[0], what, f"run `kdci run {' '.join(stale)}` first"))
    if problems:
        raise CombinedUserError(problems)


def _links(graph: Graph, nodes: Iterable[Node]) -> tuple[str, ...]:
    """Return the places of what trials adopt themselves: no node makes it."""
    parents = [parent.path for node in nodes for parent in node.parents.values()]
    adopted = dict.fromkeys(path for path in parents if path not in graph.by_artifact)
    return tuple(_place(graph, path) for path in adopted if path.is_relative_to(graph.layout.root))
