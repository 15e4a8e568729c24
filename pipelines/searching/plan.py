"""What a trial runs, and what it takes from the workspace as it is.

Of all stages that a student is made by, those run again that a searched key reaches, and those
made from them. The others' artifacts are the workspace's own: up to date, and only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.params import Grid, Params
from kdci.deconfounding.arms import ARMS, BASE_ARMS, FURTHER_ARMS, OTHER_ARM
from kdci.errors import CombinedUserError, UserError
from kdci.store.artifacts import read_card
from kdci.store.layout import Cell, Layout
from pipelines.graph.dag import Dag, Verdict
from pipelines.searching.results import StageCall

if TYPE_CHECKING:
    from pipelines.graph.plan import PlannedStage

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
_OTHER = "_other"


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


def plan_trials(
    params: Params, layout: Layout, subject: Subject, keys: Iterable[str], dag: Dag
) -> SearchPlan:
    """Work out what trials run.

    Args:
        params: The params that trials start from, with the subject's grid.
        layout: Of the workspace.
        subject: Whose hyper-parameters are searched.
        keys: The searched keys.
        dag: The workspace's stages, with their status.

    Raises:
        CombinedUserError: A key changes nothing of these students or must not change, or an
            artifact that trials share is not up to date.
    """
    keys = list(keys)
    chain = _chain(params, layout, subject)
    reached = _reached(chain, keys)
    problems = list(_misplaced(params, subject, chain, keys))
    if problems:
        raise CombinedUserError(problems)
    makers = {out: stage.name for stage in dag.stages.values() for out in stage.outs}
    students = {layout.student(cell): cell for cell in subject.cells}
    stages, upstream = [], []
    for stage in chain:
        place = stage.artifact.relative_to(layout.root).as_posix()
        if stage.name in reached or stage.artifact in students:
            cell = students.get(stage.artifact)
            stages.append(_call(stage, place, cell, makers.get(place, stage.name)))
        else:
            upstream.append(place)
    _require_up_to_date(upstream, makers, dag)
    blocks = {key: None for stage in chain for key in stage.params}
    given = {
        key: value
        for key, value in leaves(params, [*blocks, "evaluate"]).items()
        if key not in set(keys)
    }
    links = _adopted(params, stages)
    return SearchPlan(tuple(stages), tuple(upstream), links, given)


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


def contents(layout: Layout, places: Iterable[str]) -> dict[str, str]:
    """Return the content hash on the card of each artifact, by its place below the root.

    Raises:
        UserError: One is not there.
        IntegrityError: A card is damaged.
    """
    return {
        place: str(read_card(layout.root / place, kind=kind_of(place))["content"])
        for place in places
    }


def kind_of(place: str) -> str:
    """Return the kind of the artifact at a place that DVC knows."""
    folders = {
        "teachers": "teacher",
        "pools": "pool",
        "dictionaries": "dictionary",
        "students": "student",
    }
    return next(kind for folder, kind in folders.items() if f"/{folder}/" in f"/{place}")


def _chain(params: Params, layout: Layout, subject: Subject) -> list[PlannedStage]:
    """Return the stages that the students are made by, parents first."""
    from pipelines.graph.plan import planned_stages

    planned = planned_stages(params, layout)
    makers = {stage.artifact: stage for stage in planned}
    wanted: set[str] = set()
    waiting = [layout.student(cell) for cell in subject.cells]
    while waiting:
        stage = makers.get(waiting.pop())
        if stage is not None and stage.name not in wanted:
            wanted.add(stage.name)
            waiting += stage.parents.values()
    return [stage for stage in planned if stage.name in wanted]


def _reached(chain: Sequence[PlannedStage], keys: Sequence[str]) -> set[str]:
    """Return the names of the stages that come out differently for other values of the keys."""
    reached: set[str] = set()
    places: set[Path] = set()
    for stage in chain:  # parents come first
        own = any(_lies_in(key, block) for key in keys for block in stage.params)
        if own or places.intersection(stage.parents.values()):
            reached.add(stage.name)
            places.add(stage.artifact)
    return reached


def _lies_in(key: str, block: str) -> bool:
    return key == block or key.startswith(f"{block}.")


def _misplaced(
    params: Params, subject: Subject, chain: Sequence[PlannedStage], keys: Sequence[str]
) -> Iterator[UserError]:
    """Find keys that must not change, and those whose change would not be seen."""
    blocks = {block for stage in chain for block in stage.params}
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


def _call(stage: PlannedStage, place: str, cell: Cell | None, dvc_name: str) -> StageCall:
    group = stage.name.partition("@")[0]
    of_other = group in {f"{name}{_OTHER}" for name in ("teacher", "substitute", "dictionary")}
    arguments = ["--other"] if of_other else []
    module, _, arm = group.partition("_")
    if module == "distill":
        arguments += ["--variant", arm]
    for axis, value in stage.cell.items():
        arguments += [f"--{axis.replace('_', '-')}", str(value)]
    return StageCall(
        name=stage.name,
        dvc_name=dvc_name,
        module=module,
        arguments=tuple(arguments),
        artifact=place,
        cell=None if cell is None else cell.asdict(),
    )


def _require_up_to_date(places: Iterable[str], makers: Mapping[str, str], dag: Dag) -> None:
    problems, stale = [], []
    verdicts = dag.verdicts
    for place in places:
        maker = makers.get(place)
        if maker is None:
            what = "trials are made from it, and no stage of params.yaml makes it"
            problems.append(UserError(place, what, "add its seed to the grid"))
        elif verdicts[maker] is not Verdict.unchanged:
            stale.append(maker)
    if stale:
        names = " ".join(dict.fromkeys(stale))
        what = "trials are made from it, and it is not up to date"
        problems.append(UserError(stale[0], what, f"run `kdci run {names}` first"))
    if problems:
        raise CombinedUserError(problems)


def _adopted(params: Params, stages: Sequence[StageCall]) -> tuple[str, ...]:
    """Return the place of a dictionary that trials adopt themselves."""
    place = params.dictionary.artifact
    adopts = any(call.module == "dictionary" and "--other" not in call.arguments for call in stages)
    return (place,) if place is not None and adopts and not Path(place).is_absolute() else ()
