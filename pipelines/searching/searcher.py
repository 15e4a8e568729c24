"""Asks Optuna for the next trial's values: seeded by the trial's number, none asked for twice.

Optuna's own stream would begin anew with every driver. Here the n-th suggestion depends on the
seed, on n, and on the trials that are known by then, so a search that was killed goes on as it
would have. Import it late: Ray and Optuna take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.searching.results import Search, TrialRecord, trial_id_of
from pipelines.searching.space import Space

METRIC = "score"
ATTEMPTS = 100
"""So many suggestions of known values in a row, and the space counts as exhausted."""


class DistinctSearcher(Searcher):  # type: ignore[misc,unused-ignore]
    """Tune's searcher over Optuna's: rounded values, none twice, interrupted trials first.

    Args:
        search: What is searched.
        space: Its distributions.
        records: The trials known; those that an earlier driver left unfinished come first, with
            the values they had.
    """

    def __init__(self, search: Search, space: Space, records: Iterable[TrialRecord]) -> None:
        super().__init__(metric=METRIC, mode="max")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        known = list(records)
        self._space = space
        self._seed = search.seed
        self._sampler = RandomSampler if search.searcher == "random" else TPESampler
        self._distributions = {key: each.for_optuna() for key, each in space.items()}
        self._study = optuna.create_study(direction="maximize")
        self._waiting = [record for record in known if not record.is_finished]
        self._scores = {record.trial_id: record.score for record in known}
        self._next = max((record.number for record in known), default=-1) + 1
        self._asked: dict[str, optuna.Trial] = {}  # by Tune's id of a trial
        self._resumed: dict[str, TrialRecord] = {}
        for record in known:
            if record.is_finished:
                self._tell(record, None if record.status == "failed" else record.score)

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of the next trial; FINISHED: the space is exhausted."""
        if self._waiting:
            record = self._waiting.pop(0)
            self._resumed[trial_id] = record
            return _config(record.number, record.values, record.suggested)
        for _ in range(ATTEMPTS):
            number, self._next = self._next, self._next + 1
            asked = self._ask(number)
            values = {key: self._space[key].rounded(value) for key, value in asked.params.items()}
            known_as = trial_id_of(values)
            if known_as not in self._scores:
                self._scores[known_as] = None
                self._asked[trial_id] = asked
                return _config(number, values, asked.params)
            self._complete(asked, self._scores[known_as])
        return Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: Optuna prunes nothing here, and TPE looks at last scores only."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how a trial ended."""
        score = (result or {}).get(METRIC)
        if trial_id in self._resumed:
            self._tell(self._resumed[trial_id], score)
        elif trial_id in self._asked:
            self._complete(self._asked.pop(trial_id), score)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the trials' records are the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search goes on from its own records."""
        raise NotImplementedError

    def _ask(self, number: int) -> optuna.Trial:
        """Ask for suggestion ``number``, with a stream of its own."""
        from kdci.training.runtime import derive_seed

        seed = derive_seed(self._seed, "suggestion", number) % 2**32  # Optuna takes 32 bits
        self._study.sampler = self._sampler(seed=seed)
        return self._study.ask(self._distributions)

    def _complete(self, asked: optuna.Trial, score: float | None) -> None:
        self._study.tell(asked, score, _state(score))

    def _tell(self, record: TrialRecord, score: float | None) -> None:
        """Give Optuna a trial that it was not asked for."""
        self._study.add_trial(
            create_trial(
                state=_state(score),
                value=score,
                params=record.suggested,
                distributions=self._distributions,
            )
        )
        self._scores[record.trial_id] = score


def _state(score: float | None) -> TrialState:
    return TrialState.FAIL if score is None else TrialState.COMPLETE


def _config(number: int, values: Mapping[str, Any], suggested: Mapping[str, Any]) -> dict[str, Any]:
    return {"number": number, "values": dict(values), "suggested": dict(suggested)}


def make_scheduler(search: Search, records: Iterable[TrialRecord]) -> TrialScheduler:
    """Return what stops trials early: ASHA that knows the finished trials' curves, or nothing."""
    if search.scheduler == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = ASHAScheduler(
        metric=METRIC,
        mode="max",
        max_t=max(search.num_points, search.grace),
        grace_period=search.grace,
        reduction_factor=search.reduction,
    )
    controller: Any = None
    for record in records:
        if record.status not in ("complete", "stopped"):
            continue
        trial: Any = SimpleNamespace(trial_id=record.trial_id)
        scheduler.on_trial_add(controller, trial)
        for iteration, (_, score) in enumerate(record.curve, start=1):
            result = {"training_iteration": iteration, METRIC: score}
            scheduler.on_trial_result(controller, trial, result)
    return scheduler
