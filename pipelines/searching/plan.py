"""What a trial runs, and what it takes from the workspace as it is.

Of all stages that a student is made by, those run again that a searched key reaches, and those
made from them. The others' artifacts are the workspace's own: up to date, and only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdci.config.params import Grid, Params
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.errors import CombinedUserError, UserError
from kdci.graph.build import Graph
from kdci.graph.cells import sources_of
from kdci.graph.node import Node
from kdci.store.artifacts import read_card
from pipelines.graph.dag import Dag, Verdict
from pipelines.searching.criteria import part_of
from pipelines.searching.options import SearchOptions
from pipelines.searching.results import Search, StageCall
from pipelines.searching.space import dotted

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


def begin_search(params: Params, options: SearchOptions, space: Mapping[str, object]) -> Search:
    """Return a search without its stages; whose it is and is not said is the grid's first.

    Args:
        params: The project's.
        options: What is asked for.
        space: Distributions by dotted key.

    Raises:
        CombinedUserError: Something is not of the grid.
    """
    grid = params.grid
    teacher = options.teacher or grid.teachers[0]
    students = [student for of, student in grid.all_pairs if of == teacher]
    search = Search(
        name=options.name or "",
        preset=params.preset,
        teacher=teacher,
        student=options.student or next(iter(students), grid.all_pairs[0][1]),
        method=options.method or grid.methods[0],
        variant=options.variant or "kdci",
        pool_seeds=tuple(options.pool_seeds or grid.pool_seeds[:1]),
        seeds=tuple(options.seeds or grid.seeds[:1]),
        criterion=options.criterion,
        metric="",
        space={key: str(each) for key, each in space.items()},
        scheduler=options.scheduler,
        searcher=options.searcher,
        seed=options.seed,
        grace=options.grace,
        reduction=options.reduction,
    )
    problems = list(_misfits(search, grid, students))
    if problems:
        raise CombinedUserError(problems)
    metric = "_".join([*search.criterion.split(":"), part_of(params, search.variant)])
    num_points = len(search.cells) * params.distill.num_snapshots
    return search.model_copy(update={"metric": metric, "num_points": num_points})


def _misfits(search: Search, grid: Grid, students: Sequence[str]) -> Iterator[UserError]:
    arms = [*BASE_ARMS, *FURTHER_ARMS, *([OTHER_ARM] if grid.others else [])]
    if search.method in grid.shifts:
        arms = [arm for arm in arms if arm != OTHER_ARM]
    allowed = {
        "--teacher": (search.teacher, grid.teachers),
        "--student": (search.student, students),
        "--method": (search.method, (*grid.methods, *grid.shifts)),
        "--variant": (search.variant, arms),
    }
    for option, (value, names) in allowed.items():
        if value not in names:
            what = f"{value} can not be searched with these params"
            yield UserError(option, what, f"one of {', '.join(names)}")
    for option, numbers in (("--pool-seeds", search.pool_seeds), ("--seeds", search.seeds)):
        if len(set(numbers)) != len(numbers) or any(number < 0 for number in numbers):
            yield UserError(option, f"{list(numbers)} is no list of distinct seeds", "write 0,1")


def grid_of(search: Search, params: Params) -> dict[str, list[Any]]:
    """Return the axes of the params' grid cut down to a search's students, by dotted key."""
    shifted = search.method in params.grid.shifts
    further = search.variant in FURTHER_ARMS and not shifted
    other = search.variant == OTHER_ARM and not shifted
    axes: dict[str, list[Any]] = {
        "controls": [],
        "arms": [search.variant] if further else [],
        "others": [params.grid.other_of(search.teacher, search.student)] if other else [],
        "teachers": [search.teacher],
        "students": [search.student],
        "pairs": [],
        "other_pairs": [],
        "methods": [params.base_of(search.method)],
        "pool_seeds": list(search.pool_seeds),
        "seeds": list(search.seeds),
        "shifts": [search.method] if shifted else [],
        "shift_arms": list(dict.fromkeys(("vanilla", search.variant))) if shifted else [],
    }
    return {f"grid.{axis}": values for axis, values in axes.items()}


def plan_trials(graph: Graph, search: Search, dag: Dag) -> Search:
    """Return the search with what its trials run, and what they take as given.

    Args:
        graph: Of the params that trials start from, with the search's grid, in the workspace.
        search: As it was begun.
        dag: The workspace's stages, with their status.

    Raises:
        CombinedUserError: A key changes nothing of these students or must not change, or an
            artifact that trials share is not up to date.
        IntegrityError: The card of one is damaged.
    """
    keys = list(search.space)
    chain = _chain(graph, search)
    reached = _reached(chain, keys)
    problems = list(_misplaced(graph.params, search, chain, keys))
    if problems:
        raise CombinedUserError(problems)
    own = [node for node in chain if node.name in reached or node.stage == "distill"]
    shared = [node for node in chain if node not in own]
    _require_up_to_date(graph, shared, dag)
    blocks = {key: None for node in chain for key in node.blocks.values()}
    given = leaves(graph.params, [*blocks, "evaluate"])
    stages = tuple(
        StageCall(
            name=node.name,
            stage=node.stage,
            cell=node.cell,
            artifact=_place(graph, node.artifact),
            student=None if node.student is None else node.student.asdict(),
        )
        for node in own
    )
    found = {
        "given": {key: value for key, value in given.items() if key not in search.space},
        "upstream": contents(graph, [_place(graph, node.artifact) for node in shared]),
        "code": fingerprints(graph, stages),
        "links": _links(graph, own),
        "stages": stages,
    }
    return search.model_copy(update=found)


def leaves(params: Params, blocks: Iterable[str]) -> dict[str, Any]:
    """Return the values below blocks of the params, by dotted key."""
    return dict(dotted(params.blocks(*blocks)))


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


def _chain(graph: Graph, search: Search) -> list[Node]:
    """Return the nodes that the students are made by, parents first."""
    wanted: set[str] = set()
    waiting = [graph.layout.student(cell) for cell in search.cells]
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
    params: Params, search: Search, chain: Sequence[Node], keys: Sequence[str]
) -> Iterator[UserError]:
    """Find keys that must not change, and those whose change would not be seen."""
    blocks = {block for node in chain for block in node.blocks.values()}
    arm = ARMS[search.variant]
    fixed_by_arm = {f"compensation.{name.rstrip('_')}" for name in arm.changes}
    for key in keys:
        reason = next((why for block, why in FIXED.items() if _lies_in(key, block)), None)
        if reason is not None:
            yield UserError(key, reason, "leave it out of the space")
        elif not any(_lies_in(key, block) for block in blocks):
            who = f"a {search.variant} student of {search.method}"
            yield UserError(key, f"changes nothing of {who}", "leave it out of the space")
        elif key in fixed_by_arm:
            what = f"is set by the arm {search.variant} itself"
            yield UserError(key, what, "leave it out of the space")
        elif _lies_in(key, "dictionary") and params.dictionary.artifact is not None:
            what = "changes nothing of a dictionary that is adopted (dictionary.artifact)"
            yield UserError(key, what, "set dictionary.artifact to null")
        elif key == "dictionary.artifact":
            yield UserError(key, "is another dictionary's place", "leave it out of the space")
        else:
            yield from _overridden(params, search, key)


def _overridden(params: Params, search: Search, key: str) -> Iterator[UserError]:
    """Find a value of a method that is not the one which holds for this teacher and student."""
    if not key.startswith("methods."):
        return
    _, method, *place, field = key.split(".")
    if len(place) > 2 or place[:1] not in ([], ["by_teacher"], ["by_student"]):
        return  # open_world.num_images: no override has such a value
    block = params.methods[method]
    owners: dict[tuple[str, ...], Mapping[str, object]] = {
        ("by_student", search.student): block.by_student.get(search.student, {}),
        ("by_teacher", search.teacher): block.by_teacher.get(search.teacher, {}),
        (): {field: None},
    }
    holding = next(owner for owner, values in owners.items() if field in values)
    if tuple(place) == holding:
        return
    if tuple(place) not in owners:
        what = f"changes nothing of {search.teacher} -> {search.student}"
        yield UserError(key, what, "leave it out of the space")
    else:
        better = ".".join(["methods", method, *holding, field])
        yield UserError(key, f"is set by {'.'.join(holding)} itself", f"search {better}")


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
