"""The MLflow side of tracking: one store, its runs, and what is written to them.

All that is written through here can be written again: params, tags and metric points that a
run already has are left out, so a pass that was cut short is completed by the next.
MLflow takes seconds to import and is imported when a store is opened.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kdci.errors import StorageError
from kdci.store.layout import Layout
from pipelines.tracking.uri import (
    artifact_location,
    redacted,
    remove_stray_folder,
    require_store,
    store_error,
)
from pipelines.tracking.writing.record import (
    ARTIFACT,
    CONTENT,
    INDEXED,
    PARENT,
    DatasetUse,
    Point,
    RunRecord,
)
from pipelines.tracking.writing.saved_view import TAG, saved_view

# Before MLflow is imported: no telemetry, no pickles, and seconds instead of minutes of retries.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
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
_MAX_PARAMS = 100  # MLflow's limits of one batch, and of one value
_MAX_METRICS = 1000
_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 5000

T = TypeVar("T")


class Store:
    """An opened MLflow store with the experiment of one preset.

    Args:
        uri: MLflow's tracking URI.
        layout: The experiment; ``kdci-<preset>`` is its name in MLflow.

    Raises:
        StorageError: The store does not answer, or can not be used.
    """

    def __init__(self, uri: str, layout: Layout) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # A dead server is told in one line of our own, not in a warning for each retry.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        require_store(uri)
        self.uri = uri
        self.experiment = f"kdci-{layout.preset}"
        self.records: list[RunRecord] = []
        self._index: defaultdict[tuple[str, str], list[RunRecord]] = defaultdict(list)
        self.created = 0
        self.points = 0
        with self.errors():
            from mlflow import MlflowClient

            self.client: Any = MlflowClient(tracking_uri=uri)
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
        token: str | None = None
        with self.errors():
            while True:
                page = self.client.search_runs(
                    [self.experiment_id], max_results=1000, page_token=token
                )
                for run in page:
                    self._add(_record(run))
                token = page.token
                if not token:
                    return

    def find(self, tags: Mapping[str, str]) -> list[RunRecord]:
        """Return the runs that have all of these tags; the first is one of ``INDEXED``."""
        name = next(iter(tags))
        found = self._index.get((name, tags[name]), [])
        return [record for record in found if tags.items() <= record.tags.items()]

    def _add(self, record: RunRecord) -> None:
        self.records.append(record)
        self._index_tags(record, record.tags)

    def _index_tags(self, record: RunRecord, tags: Mapping[str, str]) -> None:
        for name in INDEXED & tags.keys():
            self._index[name, tags[name]].append(record)

    def logged(self) -> set[tuple[str, str]]:
        """Return artifact path and content hash of what was logged whole."""
        return {
            (record.tags[ARTIFACT], record.tags[CONTENT])
            for record in self.records
            if record.status == "FINISHED" and record.tags.keys() >= {ARTIFACT, CONTENT}
        }

    def _unindex_tags(self, record: RunRecord, names: Set[str]) -> None:
        for name in INDEXED & names:
            self._index[name, record.tags[name]].remove(record)

    def create(
        self, name: str, tags: Mapping[str, str], *, started: float, parent: RunRecord | None = None
    ) -> RunRecord:
        """Create a run that is `RUNNING` since ``started`` (Unix seconds)."""
        tags = _clean_tags(tags)
        if parent is not None:
            tags[PARENT] = parent.run_id
        with self.errors():
            run = self.client.create_run(
                self.experiment_id, start_time=int(started * 1000), tags=tags, run_name=name
            )
        record = RunRecord(run.info.run_id, "RUNNING", tags, started=started, new=True)
        self._add(record)
        self.created += 1
        return record

    def delete(self, record: RunRecord) -> None:
        """Take a run out of the view."""
        with self.errors():
            self.client.delete_run(record.run_id)
        self.records.remove(record)
        self._unindex_tags(record, record.tags.keys())

    def set_tags(self, record: RunRecord, tags: Mapping[str, str]) -> None:
        """Set the tags that differ from the run's."""
        changed = {k: v for k, v in _clean_tags(tags).items() if record.tags.get(k) != v}
        if not changed:
            return
        with self.errors():
            from mlflow.entities import RunTag

            for chunk in _chunks(list(changed.items()), _MAX_PARAMS):
                self._log_batch(record, tags=[RunTag(key, value) for key, value in chunk])
        self._unindex_tags(record, changed.keys() & record.tags.keys())
        record.tags.update(changed)
        self._index_tags(record, changed)

    def log_params(self, record: RunRecord, params: Mapping[str, str]) -> None:
        """Log the params that the run does not have; MLflow never changes one."""
        missing = [(_clean_key(k), v) for k, v in params.items()]
        missing = [(k, v) for k, v in missing if k not in record.params]
        with self.errors():
            from mlflow.entities import Param

            for chunk in _chunks(missing, _MAX_PARAMS):
                batch = [Param(key, value[:_MAX_PARAM_CHARS]) for key, value in chunk]
                self._log_batch(record, params=batch)
        record.params.update(missing)

    def log_points(self, record: RunRecord, points: Sequence[Point]) -> None:
        """Log the points whose key, step and value the run does not have."""
        points = [point._replace(key=_clean_key(point.key)) for point in points]
        known = set() if record.new else self._history(record, {point.key for point in points})
        fresh = []
        for point in points:
            if point[:3] not in known:
                known.add(point[:3])
                fresh.append(point)
        with self.errors():
            from mlflow.entities import Metric

            for chunk in _chunks(fresh, _MAX_METRICS):
                batch = [Metric(p.key, p.value, p.milliseconds, p.step) for p in chunk]
                self._log_batch(record, metrics=batch)
        self.points += len(fresh)

    def set_values(self, record: RunRecord, values: Mapping[str, float]) -> None:
        """Make ``values`` the latest ones of the run, if they are not; they have no curve."""
        now = int(time.time() * 1000)
        changed = {_clean_key(k): v for k, v in values.items()}
        changed = {k: v for k, v in changed.items() if record.metrics.get(k) != v}
        if not changed:
            return
        with self.errors():
            from mlflow.entities import Metric

            batch = [Metric(key, value, now, 0) for key, value in changed.items()]
            self._log_batch(record, metrics=batch)
        record.metrics.update(changed)
        self.points += len(changed)

    def log_file(self, record: RunRecord, file: Path, folder: str | None = None) -> None:
        """Copy ``file`` into ``folder`` of the run's artifacts."""
        with self.errors():
            self.client.log_artifact(record.run_id, str(file), folder)

    def log_folder(self, record: RunRecord, folder: Path, name: str) -> None:
        """Copy the files of ``folder`` into ``name`` of the run's artifacts."""
        with self.errors():
            self.client.log_artifacts(record.run_id, str(folder), name)

    def log_datasets(self, record: RunRecord, datasets: Sequence[DatasetUse]) -> None:
        """Log the datasets that the run does not have."""
        missing = [use for use in datasets if (use.name, use.digest) not in record.inputs]
        if not missing:
            return
        with self.errors():
            self.client.log_inputs(record.run_id, [_dataset_input(use) for use in missing])
        record.inputs |= {(use.name, use.digest) for use in missing}

    def set_status(self, record: RunRecord, status: str, *, ended: float | None = None) -> None:
        """Set the run's status; ``ended`` in Unix seconds, or now."""
        if record.status == status:
            return
        with self.errors():
            if status in ("RUNNING", "SCHEDULED"):
                self.client.update_run(record.run_id, status=status)
            else:
                milliseconds = int((time.time() if ended is None else ended) * 1000)
                self.client.set_terminated(record.run_id, status, milliseconds)
        record.status = status

    def _history(self, record: RunRecord, keys: set[str]) -> set[tuple[str, float, int]]:
        with self.errors():
            return {
                (metric.key, metric.value, metric.step)
                for key in keys
                for metric in self.client.get_metric_history(record.run_id, key)
            }

    def _log_batch(self, record: RunRecord, **entities: Sequence[object]) -> None:
        self.client.log_batch(record.run_id, **entities, synchronous=True)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn a failure of the store in the block into one line of ours."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            # The cause is left out: its text may carry credentials.
            raise store_error(self.uri, error) from None


def _record(run: Any) -> RunRecord:
    info, data = run.info, run.data
    tags, metrics, params = dict(data.tags), dict(data.metrics), dict(data.params)
    started = info.start_time / 1000
    datasets = [one.dataset for one in run.inputs.dataset_inputs] if run.inputs else []
    inputs = {(dataset.name, dataset.digest) for dataset in datasets}
    return RunRecord(info.run_id, info.status, tags, metrics, params, started, inputs)


def _dataset_input(use: DatasetUse) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    dataset = Dataset(
        name=use.name,
        digest=use.digest,
        source_type="local",
        source=json.dumps({"uri": use.source}),
        profile=json.dumps(dict(use.facts)),
    )
    return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, use.context)])


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {_clean_key(key): value[:_MAX_TAG_CHARS] for key, value in tags.items()}


def _clean_key(key: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", key)[:250]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
