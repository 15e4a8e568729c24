"""The MLflow side of tracking: one store, its runs, and what is written to them.

All that is written through here can be written again: params, tags and metric points that a
run already has are left out, so a pass that was cut short is completed by the next.
MLflow takes seconds to import and is imported when a store is opened.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.errors import StorageError
from kdci.store.layout import Layout
from pipelines.flow.telemetry import switch_off
from pipelines.tracking.uri import (
    artifact_location,
    redacted,
    remove_stray_folder,
    require_store,
    store_errors,
)
from pipelines.tracking.writing.saved_view import TAG, saved_view
from pipelines.tracking.writing.tags import ARTIFACT, CONTENT, INDEXED, PARENT, Point

# Before MLflow is imported: no pickles, and seconds instead of minutes of retries.
_ENVIRONMENT = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it logs tracebacks of errors that it also raises
}
_EXPERIMENT = {
    # The interface would ask what kind of experiment it is, or take it for one of prompts.
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": (
        "A view of files, made by `kdci sync`. Views > Arms compares the arms of every method; "
        "docs/tracking.md tells what is where."
    ),
    TAG: saved_view(),
}
_MAX_PARAM_CHARS = 6000  # MLflow's limits of one value
_MAX_TAG_CHARS = 5000
_PAGE = 1000


@dataclass
class RunRecord:
    """A run as the store knows it.

    Attributes:
        run_id: MLflow's id.
        status: MLflow's status: `RUNNING`, `FINISHED`, `FAILED`, `KILLED`, `SCHEDULED`.
        tags: Its tags.
        metrics: Latest value of each metric.
        params: Its params.
        started: Unix seconds.
        inputs: Name and digest of each dataset it read.
        new: Whether this pass created it, so that nothing can be in it yet.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    inputs: set[tuple[str, str]] = field(default_factory=set)
    new: bool = False


def prepare_mlflow() -> None:
    """Set what MLflow reads from the environment, telemetry switched off; before its import."""
    switch_off()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class Store:
    """An opened MLflow store with the experiment of one preset.

    What writes passes MLflow's own errors on; see ``pipelines.tracking.uri.store_errors``.

    Args:
        uri: MLflow's tracking URI.
        layout: The experiment; ``kdci-<preset>`` is its name in MLflow.

    Raises:
        StorageError: The store does not answer, or can not be used.
    """

    def __init__(self, uri: str, layout: Layout) -> None:
        prepare_mlflow()
        # A dead server is told in one line of our own, not in a warning for each retry.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        require_store(uri)
        self.uri = uri
        self.experiment = f"kdci-{layout.preset}"
        self.records: list[RunRecord] = []
        self._index: defaultdict[tuple[str, str], dict[str, RunRecord]] = defaultdict(dict)
        self.created = 0
        self.points = 0
        with store_errors(uri):
            import mlflow.entities

            self._entities: Any = mlflow.entities
            self.client: Any = mlflow.MlflowClient(tracking_uri=uri)
            self.experiment_id = self._open_experiment(artifact_location(uri, layout.root))
        remove_stray_folder(uri)

    def _open_experiment(self, location: str | None) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            return str(
                self.client.create_experiment(
                    self.experiment, artifact_location=location, tags=_EXPERIMENT
                )
            )
        if found.lifecycle_stage != "active":
            fix = f"run `mlflow experiments restore --experiment-id {found.experiment_id}`"
            raise StorageError(
                redacted(self.uri), f"experiment {self.experiment} was deleted in MLflow", fix
            )
        for name in _EXPERIMENT.keys() - found.tags.keys():
            self.client.set_experiment_tag(found.experiment_id, name, _EXPERIMENT[name])
        return str(found.experiment_id)

    def refresh(self) -> None:
        """Read all runs of the experiment; start counting what is written."""
        self.created = self.points = 0
        self.records = []
        self._index.clear()
        with store_errors(self.uri):
            for run in all_pages(self.client.search_runs, [self.experiment_id]):
                self._add(_record(run))

    def find(self, tags: Mapping[str, str]) -> list[RunRecord]:
        """Return the runs that have all of these tags; the first is one of ``INDEXED``."""
        name = next(iter(tags))
        found = self._index.get((name, tags[name]), {})
        return [record for record in found.values() if tags.items() <= record.tags.items()]

    def _add(self, record: RunRecord) -> None:
        self.records.append(record)
        self._index_tags(record)

    def _index_tags(self, record: RunRecord) -> None:
        """Note under its tags where a run is; what it had before stays, and ``find`` compares."""
        for name in INDEXED & record.tags.keys():
            self._index[name, record.tags[name]][record.run_id] = record

    def logged(self) -> set[tuple[str, str]]:
        """Return artifact path and content hash of what was logged whole."""
        return {
            (record.tags[ARTIFACT], record.tags[CONTENT])
            for record in self.records
            if record.status == "FINISHED" and record.tags.keys() >= {ARTIFACT, CONTENT}
        }

    def create(
        self, name: str, tags: Mapping[str, str], *, started: float, parent: RunRecord | None = None
    ) -> RunRecord:
        """Create a run that is `RUNNING` since ``started`` (Unix seconds)."""
        tags = _clean_tags(tags)
        if parent is not None:
            tags[PARENT] = parent.run_id
        run = self.client.create_run(
            self.experiment_id, start_time=int(started * 1000), tags=tags, run_name=name
        )
        record = RunRecord(run.info.run_id, "RUNNING", tags, started=started, new=True)
        self._add(record)
        self.created += 1
        return record

    def ensure(
        self,
        name: str,
        known: Mapping[str, str],
        more: Mapping[str, str],
        *,
        started: float,
        parent: RunRecord | None = None,
    ) -> RunRecord:
        """Return the run with the tags ``known``, see ``find``; if there is none, a new one."""
        for record in self.find(known):
            return record
        return self.create(name, {**more, **known}, started=started, parent=parent)

    def delete(self, record: RunRecord) -> None:
        """Take a run out of the view; it has no tags then."""
        self.client.delete_run(record.run_id)
        self.records.remove(record)
        record.tags = {}

    def set_tags(self, record: RunRecord, tags: Mapping[str, str]) -> None:
        """Set the tags that differ from the run's."""
        changed = {k: v for k, v in _clean_tags(tags).items() if record.tags.get(k) != v}
        batch = [self._entities.RunTag(key, value) for key, value in changed.items()]
        self.client.log_batch(record.run_id, tags=batch)
        record.tags.update(changed)
        self._index_tags(record)

    def log_params(self, record: RunRecord, params: Mapping[str, str]) -> None:
        """Log the params that the run does not have; MLflow never changes one."""
        missing = [(_clean_key(k), v[:_MAX_PARAM_CHARS]) for k, v in params.items()]
        missing = [(k, v) for k, v in missing if k not in record.params]
        batch = [self._entities.Param(key, value) for key, value in missing]
        self.client.log_batch(record.run_id, params=batch)
        record.params.update(missing)

    def log_points(self, record: RunRecord, points: Sequence[Point]) -> None:
        """Log the points whose key, step and value the run does not have."""
        points = [point._replace(key=_clean_key(point.key)) for point in points]
        known = set() if record.new else self._history(record, {point.key for point in points})
        fresh: dict[tuple[str, float, int], Point] = {}
        for point in points:
            if point[:3] not in known:
                fresh.setdefault(point[:3], point)
        self._log_metrics(record, list(fresh.values()))

    def set_values(self, record: RunRecord, values: Mapping[str, float]) -> None:
        """Make ``values`` the latest ones of the run, if they are not; they have no curve."""
        now = int(time.time() * 1000)
        changed = {_clean_key(k): v for k, v in values.items()}
        changed = {k: v for k, v in changed.items() if record.metrics.get(k) != v}
        self._log_metrics(record, [Point(key, value, 0, now) for key, value in changed.items()])
        record.metrics.update(changed)

    def _log_metrics(self, record: RunRecord, points: Sequence[Point]) -> None:
        batch = [self._entities.Metric(p.key, p.value, p.milliseconds, p.step) for p in points]
        self.client.log_batch(record.run_id, metrics=batch)
        self.points += len(batch)

    def copy(self, record: RunRecord, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder under its name, into ``folder`` of the run's artifacts."""
        self.client.log_artifact(record.run_id, str(path), folder)

    def log_datasets(self, record: RunRecord, inputs: Sequence[Any]) -> None:
        """Log the dataset inputs that the run does not have."""
        missing = [one for one in inputs if _dataset(one) not in record.inputs]
        if missing:
            self.client.log_inputs(record.run_id, missing)
            record.inputs |= {_dataset(one) for one in missing}

    def set_status(self, record: RunRecord, status: str, *, ended: float | None = None) -> None:
        """Set the run's status; ``ended`` in Unix seconds, or now."""
        if record.status == status:
            return
        if status in ("RUNNING", "SCHEDULED"):
            self.client.update_run(record.run_id, status=status)
        else:
            milliseconds = int((time.time() if ended is None else ended) * 1000)
            self.client.set_terminated(record.run_id, status, milliseconds)
        record.status = status

    def _history(self, record: RunRecord, keys: set[str]) -> set[tuple[str, float, int]]:
        return {
            (metric.key, metric.value, metric.step)
            for key in keys
            for metric in self.client.get_metric_history(record.run_id, key)
        }


def all_pages(search: Callable[..., Any], wanted: Any) -> list[Any]:
    """Return all that a search of MLflow's client finds."""
    from mlflow.utils import get_results_from_paginated_fn

    def page(size: int, token: str | None) -> Any:
        return search(wanted, max_results=size, page_token=token)

    return list(get_results_from_paginated_fn(page, _PAGE))  # type: ignore[no-untyped-call]


def _record(run: Any) -> RunRecord:
    info, data = run.info, run.data
    tags, metrics, params = dict(data.tags), dict(data.metrics), dict(data.params)
    started = info.start_time / 1000
    inputs = {_dataset(one) for one in run.inputs.dataset_inputs} if run.inputs else set()
    return RunRecord(info.run_id, info.status, tags, metrics, params, started, inputs)


def _dataset(one: Any) -> tuple[str, str]:
    return one.dataset.name, one.dataset.digest


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_clean_key(key): value[:_MAX_TAG_CHARS] for key, value in tags.items()}


def _clean_key(key: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", key)[:250]
