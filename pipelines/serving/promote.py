"""`kdci promote`: a search's winner becomes the values of params.yaml.

A search promises a number. It holds for the params, the shared artifacts and the code that it
took as given: what differs is refused or told.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.errors import CombinedUserError, KdciError, UserError
from kdci.graph.build import graph_of
from kdci.store.artifacts import replace_file
from kdci.store.layout import Layout, all_cells
from pipelines.graph.current import current_graph
from pipelines.graph.dag import Dag, Verdict, read_dag
from pipelines.params.edit import checked, with_values
from pipelines.running.workspace import only_runner
from pipelines.searching.plan import contents, fingerprints, leaves
from pipelines.searching.results import (
    Search,
    TrialRecord,
    best_of,
    read_search,
    read_trials,
    search_folder,
    searches,
)

MISSING = "(missing)"


@dataclass(frozen=True)
class Promotion:
    """What promoting a trial means.

    Attributes:
        search: What was searched.
        record: The trial.
        changes: Old and new value, by dotted key; those that differ.
        text: The new params file.
        stages: DVC's names of the stages that `dvc repro` runs then, as far as can be told.
        warnings: Why the number may come out otherwise.
    """

    search: Search
    record: TrialRecord
    changes: dict[str, tuple[Any, Any]]
    text: str
    stages: list[str]
    warnings: list[str] = field(default_factory=list)

    @property
    def promise(self) -> str:
        """What `dvc repro` will find, in one line."""
        score = self.record.score
        names = ", ".join(cell.name for cell in self.search.cells)
        what = f"{self.record.metric} {score} of {names}"
        mean = " (mean)" if len(self.search.cells) > 1 else ""
        if not self.record.criterion.startswith("agreement"):
            return f"{what}{mean}, which a search measures and evaluations do not"
        return f"{what}{mean}, in the evaluation's cells.json"


def promote(root: Path, run: str, *, dry_run: bool = False) -> Promotion:
    """Write a trial's values to params.yaml, its comments kept; only those that were searched.

    Args:
        root: The project folder.
        run: ``search/trial``, a trial's id, or a search for its best trial.
        dry_run: Only tell what would be written.

    Raises:
        UserError: There is no such trial, it was not completed, or what its search took as given
            is different now.
        BusyError: Somebody else runs stages here.
    """
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    if dry_run:
        return plan_promotion(layout, run)
    with only_runner(layout, "kdci promote"):
        promotion = plan_promotion(layout, run)
        replace_file(root / "params.yaml", promotion.text.encode())
    return promotion


def plan_promotion(layout: Layout, run: str) -> Promotion:
    """Work out what promoting a trial means; see ``promote``."""
    record = find_trial(layout, run)
    _require_complete(record)
    search = read_search(layout, record.search)
    file = layout.root / "params.yaml"
    text = file.read_text(encoding="utf-8")
    before = load_params(file)
    if before.preset != search.preset:
        what = f"is {before.preset}, and the search was of {search.preset}"
        raise UserError("preset", what, "set it back, or search again")
    new_text = with_values(text, record.values)
    after = checked(new_text)
    current_graph(layout.root, before)
    old = leaves(before, before.model_dump(by_alias=True))
    _require_given(search, record, old)
    new = leaves(after, after.model_dump(by_alias=True))
    changes = {key: (old[key], new[key]) for key in record.values if old[key] != new[key]}
    return Promotion(
        search=search,
        record=record,
        changes=changes,
        text=new_text if changes else text,
        stages=_stages_to_run(read_dag(layout.root), changes),
        warnings=list(_warnings(layout, after, search, record)),
    )


def find_trial(layout: Layout, run: str) -> TrialRecord:
    """Return a trial by ``search/trial``, by its id, or the best one of a search.

    Raises:
        UserError: There is none, or several have this id.
    """
    known = searches(layout)
    if run in known:
        records = read_trials(layout, run)
        best = best_of(records)
        if best is None:
            raise UserError(run, "has no complete trial", "go on with it: the same command again")
        return best
    search, _, trial = run.rpartition("/")
    found = [
        record
        for name in known
        if search in ("", name)
        for record in read_trials(layout, name)
        if record.trial_id == trial
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(record.name for record in found)
        raise UserError(run, "is a trial of several searches", f"give one of {names}")
    close = difflib.get_close_matches(run, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    listed = f"searches are {', '.join(known)}" if known else "there is none yet"
    raise UserError(run, "is no search or trial of this project", f"{hint}{listed}")


def _require_complete(record: TrialRecord) -> None:
    reasons = {
        "stopped": "was stopped early: its score is not that of a whole student",
        "failed": f"failed: {record.error}",
        "running": "is not finished",
    }
    if record.status in reasons:
        fix = "give a complete trial, or the search for its best one"
        raise UserError(record.name, reasons[record.status], fix)


def _require_given(search: Search, record: TrialRecord, now: Mapping[str, Any]) -> None:
    """Refuse where other params than the searched ones differ from the search's."""
    problems = []
    for key, value in search.given.items():
        found = now.get(key, MISSING)
        if key not in record.values and found != value:
            what = f"was {_plain(value)} in the search and is {_plain(found)} now"
            problems.append(UserError(key, what, "set it back, or search again"))
    if problems:
        raise CombinedUserError(problems)


def _warnings(layout: Layout, params: Params, search: Search, record: TrialRecord) -> Iterator[str]:
    """Tell what the promised number was made with that is different now."""
    graph = graph_of(load_params(search_folder(layout, search.name) / "params.yaml"), layout.root)
    if record.code != fingerprints(graph, search.stages):
        yield "the code has changed since the search: the number may come out otherwise"
    for place, content in search.upstream.items():
        try:
            same = contents(graph, [place])[place] == content
        except KdciError:
            same = False
        if not same:
            yield f"{place} has changed since the search: the number may come out otherwise"
    threads = params.runtime.threads
    if isinstance(threads, str):
        yield (
            f"runtime.threads is auto: the number holds for {record.threads} threads, "
            "and comes out the same where there are as many cores"
        )
    missing = [cell for cell in search.cells if cell not in set(all_cells(params.grid))]
    if missing:
        names = ", ".join(cell.name for cell in missing)
        yield f"the grid does not ask for {names}: `dvc repro` does not show the number"


def _stages_to_run(dag: Dag, changes: Mapping[str, Any]) -> list[str]:
    """Return the stages that are not up to date, and those that the changes reach."""
    reached = {
        stage.name
        for stage in dag.stages.values()
        for block in stage.params
        if any(key == block or key.startswith(f"{block}.") for key in changes)
    }
    reached |= {name for name, verdict in dag.verdicts.items() if verdict is not Verdict.unchanged}
    reached |= dag.descendants(reached)
    return [name for name in dag.stages if name in reached]


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)
