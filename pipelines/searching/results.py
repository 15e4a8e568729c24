"""What a search leaves: its own identity, a record a trial, a table. Plain files, nothing heavy.

A trial's ``trial.json`` is the truth about it; Ray Tune's own storage is never read back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, model_validator

from kdci.errors import IntegrityError, UserError
from kdci.reporting.text.tables import aligned
from kdci.store.artifacts import replace_file
from kdci.store.hashing import hash_json
from kdci.store.layout import Cell, Layout

FOLDER = "searches"
SEARCH_FILE = "search.json"
TRIAL_FILE = "trial.json"
RESULTS_FILE = "results.json"
STOP_FILE = "stop"
"""There while a search is being stopped: trials on any machine see it and save their state."""
Read = TypeVar("Read", bound=BaseModel)
FINISHED = ("complete", "stopped", "failed")


class StageCall(BaseModel, frozen=True):
    """A stage that a trial runs in its own root, where its artifact's place is relative to.

    ``stages.<stage>`` is its command, the cell its argument; a distillation has its student's axes.
    """

    name: str
    stage: str
    cell: str
    artifact: str
    student: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read what was written before cells had names; it can not be run."""
        if "dvc_name" not in values:
            return values
        names = {"name": values["dvc_name"], "stage": values["module"], "cell": ""}
        return {**names, "artifact": values["artifact"], "student": values["cell"]}


class Search(BaseModel, frozen=True):
    """What is searched: two searches with the same fields are the same search.

    Attributes:
        pool_seeds: Pools of the replicates.
        seeds: Student seeds of the replicates.
        criterion: `agreement` or `accuracy:<split>`.
        metric: What the score is the mean of over replicates, as the evaluation names it.
        space: Distributions as text, by dotted key.
        seed: Of the searcher.
        grace: Points that every trial is given before it can be stopped.
        reduction: ASHA's factor: one in so many trials goes on at each rung.
        num_points: Scores of a complete trial, at most.
        given: The params taken as given, by dotted key.
        upstream: Contents of the artifacts that trials share with the workspace, by place.
        code: Hash of the code that a score depends on, by stage.
        links: Further places that trials see of the workspace.
        stages: What each trial runs, in order.
    """

    name: str
    preset: str
    teacher: str
    student: str
    method: str
    variant: str
    pool_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    criterion: str
    metric: str
    space: dict[str, str]
    scheduler: str
    searcher: str
    seed: int
    grace: int
    reduction: int
    num_points: int = 0
    given: dict[str, Any] = {}
    upstream: dict[str, str] = {}
    code: Any = {}  # before cells had names, one hash
    links: tuple[str, ...] = ()
    stages: tuple[StageCall, ...] = ()

    @property
    def identity(self) -> str:
        """Hash of everything but the name."""
        return hash_json({**self.model_dump(mode="json"), "name": ""})

    @property
    def cells(self) -> list[Cell]:
        """The replicates: one student each."""
        pair = (self.teacher, self.student, self.method, self.variant)
        return [
            Cell(*pair, pool_seed, seed) for pool_seed in self.pool_seeds for seed in self.seeds
        ]


class TrialRecord(BaseModel):
    """What is known of a trial.

    Attributes:
        trial_id: First digits of the hash of its values: the name of its folder.
        number: Which one the searcher asked for.
        values: What it tries, by dotted key.
        suggested: The same, before numbers were rounded.
        score: In percent, the latest; None: there is none yet.
        curve: Steps of distillation and the score after them; replicates follow one another.
        steps: Steps done at the latest score.
        num_steps: Steps of a complete trial; 0: not known yet.
        status: `running` (or interrupted), `complete`, `stopped` (early) or `failed`.
        error: Why it failed, in a line.
        stages: Names of the stages that it runs.
        students: Its students' places in its root.
        started: Unix seconds.
        finished: The same; None: it is not.
        threads: Of torch, as the students' cards say.
        code: Hash of the code that the score depends on, by stage; as cards say, where they do.
        upstream: Contents of what it was made from, by place.
        given: The params taken as given, by dotted key.
        links: Ids of other tools.
    """

    search: str
    trial_id: str
    number: int
    values: dict[str, Any]
    suggested: dict[str, Any]
    criterion: str
    metric: str
    score: float | None = None
    curve: list[tuple[int, float]] = []
    steps: int = 0
    num_steps: int = 0
    status: str = "running"
    error: str = ""
    stages: list[str] = []
    students: list[str] = []
    started: float = 0.0
    finished: float | None = None
    threads: int | None = None
    code: Any = {}  # before cells had names, one hash
    upstream: dict[str, str] = {}
    given: dict[str, Any] = {}
    links: dict[str, str] = {}

    @property
    def name(self) -> str:
        """What `kdci promote` takes."""
        return f"{self.search}/{self.trial_id}"

    @property
    def is_finished(self) -> bool:
        """Tell whether the trial is not run again."""
        return self.status in FINISHED

    def add_point(self, step: int, score: float) -> None:
        """Note a score; one of the same step is replaced."""
        points = {**dict(self.curve), step: score}
        self.curve = sorted(points.items())
        self.steps, self.score = self.curve[-1]

    def asdict(self) -> dict[str, Any]:
        """Return the fields as JSON types, the name among them."""
        return {"name": self.name, **self.model_dump(mode="json")}


Event = Callable[[TrialRecord, str], None]
"""Hears of a trial: its record, and what happened: `started`, `scored` or `ended`."""


def trial_id_of(values: Mapping[str, Any]) -> str:
    """Return the name of the trial with these values: the same for the same values."""
    return hash_json(dict(values))[:10]


def search_folder(layout: Layout, name: str) -> Path:
    """Return the folder of a search."""
    return layout.work / FOLDER / name


def trial_folder(layout: Layout, search: str, trial_id: str) -> Path:
    """Return the root of a trial."""
    return search_folder(layout, search) / "trials" / trial_id


def searches(layout: Layout) -> list[str]:
    """Return the names of the workspace's searches, sorted."""
    return sorted(file.parent.name for file in (layout.work / FOLDER).glob(f"*/{SEARCH_FILE}"))


def read_search(layout: Layout, name: str) -> Search:
    """Read what a search is.

    Raises:
        UserError: There is no such search.
        IntegrityError: Its file is damaged.
    """
    file = search_folder(layout, name) / SEARCH_FILE
    return _read(Search, file, name, "is no search of this project")


def write_search(layout: Layout, search: Search) -> None:
    """Write what a search is."""
    _write(search_folder(layout, search.name) / SEARCH_FILE, search.model_dump(mode="json"))


def read_trials(layout: Layout, search: str) -> list[TrialRecord]:
    """Return the records of a search, in the order in which the trials were asked for.

    Raises:
        IntegrityError: One is damaged.
    """
    files = (search_folder(layout, search) / "trials").glob(f"*/{TRIAL_FILE}")
    records = [_read(TrialRecord, file, str(file), "is gone") for file in files]
    return sorted(records, key=lambda record: (record.number, record.trial_id))


def write_trial(layout: Layout, record: TrialRecord) -> None:
    """Write the record of a trial: a reader meets the old one or the new one."""
    folder = trial_folder(layout, record.search, record.trial_id)
    _write(folder / TRIAL_FILE, record.asdict())


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the highest score, the earlier of two that are equal."""
    complete = [r for r in records if r.status == "complete" and r.score is not None]
    return max(complete, key=lambda r: (r.score, -r.number), default=None)


def ranked(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return trials, the best first: complete ones, then by status and score."""
    order = {"complete": 0, "stopped": 1, "running": 2, "failed": 3}
    return sorted(
        records,
        key=lambda r: (order[r.status], -(r.score if r.score is not None else -1.0), r.number),
    )


def write_results(layout: Layout, search: Search, records: Sequence[TrialRecord]) -> Path:
    """Write the table of a search and return its place."""
    best = best_of(records)
    rows = []
    for record in ranked(records):
        row = record.asdict()
        for key in ("given", "upstream", "suggested"):
            del row[key]
        rows.append(row)
    table = {
        "search": search.name,
        "criterion": search.criterion,
        "metric": search.metric,
        "best": None if best is None else best.name,
        "trials": rows,
    }
    file = search_folder(layout, search.name) / RESULTS_FILE
    _write(file, table)
    return file


def table(search: Search, records: Sequence[TrialRecord]) -> str:
    """Return the trials as a table, the best first."""
    keys = list(search.space)
    heads = ["trial", *keys, search.metric, "steps", "status"]
    rows = [
        [
            record.trial_id,
            *(_text(record.values.get(key)) for key in keys),
            "-" if record.score is None else f"{record.score:.2f}",
            f"{record.steps}/{record.num_steps or '?'}",
            "interrupted" if record.status == "running" else record.status,
        ]
        for record in ranked(records)
    ]
    return "\n".join(aligned([heads, *rows], width=sys.maxsize))


def plain(value: object) -> str:
    """Return a value as params.yaml has it, null for nothing."""
    return "null" if value is None else str(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return plain(value)


def _read(kind: type[Read], file: Path, subject: str, missing: str) -> Read:
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UserError(subject, missing, "see `.kdci/searches`") from None
    except ValueError:
        raise IntegrityError(str(file), "is damaged", "remove its folder") from None


def _write(file: Path, value: Any) -> None:
    replace_file(file, json.dumps(value, indent=1, allow_nan=False).encode())
