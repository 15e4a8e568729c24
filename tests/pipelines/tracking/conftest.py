"""Real students, a real store, and the store as an independent reader sees it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.store.layout import Layout
from pipelines import tracking
from tests.pipelines.tracking._made_up import Files, make_params


@dataclass
class View:
    """A project and the store that shows it."""

    root: Path
    uri: str

    @property
    def params(self) -> Any:
        return load_params(self.root / "params.yaml")

    @property
    def layout(self) -> Layout:
        return Layout(self.root, self.params.preset)

    def sync(self, *, register: bool = True) -> tracking.SyncSummary:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", self.uri)
            if not register:
                patch.setattr(tracking.Models, "register", lambda self: None)
            return tracking.sync(self.layout, self.params)

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    @property
    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name(f"kdci-{self.params.preset}")
        return list(self.client.search_runs([experiment.experiment_id], max_results=1000))

    def run(self, stage: str) -> Any:
        (run,) = [
            run
            for run in self.runs
            if run.data.tags.get("dvc.stage") == stage and run.data.tags["kdci.run"] == "stage"
        ]
        return run

    def state(self) -> dict[str, Any]:
        """Everything that a second sync must leave as it is."""
        client = self.client
        seen: dict[str, Any] = {}
        for run in self.runs:
            points = sorted(
                (metric.key, metric.step, metric.value)
                for key in run.data.metrics
                for metric in client.get_metric_history(run.info.run_id, key)
            )
            inputs = sorted(
                (one.dataset.name, one.dataset.digest, one.tags[0].value)
                for one in run.inputs.dataset_inputs
            )
            tags, params = run.data.tags, run.data.params
            seen[run.info.run_id] = (run.info.status, tags, params, points, inputs)
        for version in client.search_model_versions():
            key = (version.name, version.version)
            seen[str(key)] = (version.tags, version.aliases, version.source, version.run_id)
        return seen


def summary_of(state: dict[str, Any]) -> list[str]:
    """Return a state without MLflow's own ids, which differ from store to store."""
    ids = {key for key in state if not key.startswith("(")}
    text = []
    for value in state.values():
        line = repr(value)
        for run_id in ids:
            line = line.replace(run_id, "id")
        text.append(line)
    return sorted(text)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SQLite store: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def view(built: Any, empty_store: Path, tmp_path: Path) -> Iterator[View]:
    before = dict(os.environ)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    yield View(built.root, os.environ["MLFLOW_TRACKING_URI"])
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for all tests, for making one takes seconds; presets keep them apart."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def store_uri(shared_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_store)
    return shared_store


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """For students that are made up and have no network to export."""
    monkeypatch.setattr(tracking.Models, "register", lambda self: None)


@pytest.fixture
def params(request: pytest.FixtureRequest) -> Params:
    return make_params(request.node.name.replace("[", "-").rstrip("]")[:60])


@pytest.fixture
def files(tmp_path: Path, params: Params) -> Files:
    return Files(tmp_path / "project", params)
