"""Stores: the default one, those that do not answer, and what stands in a sync's way."""

import os
import socket
import subprocess
import sys
import time

import pytest
from filelock import FileLock

from kdci.errors import BusyError, StorageError
from pipelines import tracking
from tests.pipelines.tracking._made_up import Files, Seen
from tests.project_code import ROOT

pytestmark = pytest.mark.usefixtures("no_models")


def test_default_store_lies_in_the_project_and_is_made_again_when_lost(
    tmp_path, params, store_uri, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    root = tmp_path / "kdci тест 空 'q\" 50% a?b"
    files = Files(root, params)
    files.everything()
    elsewhere_logged = tracking.sync(files.layout, params)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (root / "mlflow.db").touch()  # all that is left of a lost store
    assert tracking.sync(files.layout, params) == elsewhere_logged
    seen = Seen(tracking.resolve_uri(root), params.preset)
    before = Seen(store_uri, params.preset)
    for run, other in zip(by_name(seen), by_name(before), strict=True):
        assert seen.points(run) == before.points(other)
        assert seen.files(run) == before.files(other)
    assert (root / "mlruns").is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([elsewhere, root])
    assert list(elsewhere.iterdir()) == []


def by_name(seen: Seen):
    return sorted(seen.runs, key=lambda r: (r.info.run_name, sorted(r.data.metrics)))


def test_environment_variable_names_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking.resolve_uri(tmp_path) == "http://tracking:5000"


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_dead_server_is_one_quick_line(files, params, scheme, tmp_path):
    """In a process of its own: its stderr is what a user would see."""
    files.teacher()
    uri = f"{scheme}://user:canary@127.0.0.1:{closed_port()}/x?token=canary"
    before = sorted(files.layout.root.rglob("*"))
    code = (
        "import sys; from pathlib import Path; from kdci.errors import KdciError\n"
        "from kdci.store.layout import Layout; from kdci.config.params import Params\n"
        "from pipelines import tracking\n"
        "params = Params.model_validate_json(sys.argv[2])\n"
        "try: tracking.sync(Layout(Path(sys.argv[1]), params.preset), params)\n"
        "except KdciError as error: sys.exit(f'{error.exit_code} {error.lines()}')\n"
    )
    arguments = [str(files.layout.root), params.model_dump_json(by_alias=True)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
    )
    assert time.monotonic() - began < 25
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("4 ['kdci: error: " + scheme)
    assert "does not answer" in line
    assert "canary" not in done.stderr + done.stdout
    after = [path for path in sorted(files.layout.root.rglob("*")) if ".kdci" not in path.parts]
    assert after == before


def test_server_that_accepts_and_hangs_is_given_up(files, params, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(StorageError, match="does not answer"):
            port = listener.getsockname()[1]
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            tracking.sync(files.layout, params)
        assert time.monotonic() - began < 10


def test_file_that_is_no_database_is_refused_at_once(files, params, tmp_path, monkeypatch):
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{broken}")
    began = time.monotonic()
    with pytest.raises(StorageError, match="not a database"):
        tracking.sync(files.layout, params)
    assert time.monotonic() - began < 5
    assert broken.read_bytes() == b"no database" * 100


def test_two_syncs_do_not_write_at_once(files, params, store_uri, monkeypatch):
    monkeypatch.setattr(tracking, "LOCK_TIMEOUT", 0.1)
    lock = tracking.sqlite_file(store_uri).parent / ".kdci" / "tracking.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock), pytest.raises(BusyError) as caught:
        tracking.sync(files.layout, params)
    assert caught.value.exit_code == 6
    assert tracking.sync(files.layout, params).created == 0


def test_deleted_experiment_says_how_to_get_it_back(files, params, store_uri):
    tracking.sync(files.layout, params)
    client = Seen(store_uri, params.preset).client
    experiment = client.get_experiment_by_name(f"kdci-{params.preset}")
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(StorageError, match=f"experiment-id {experiment.experiment_id}"):
        tracking.sync(files.layout, params)


def test_import_costs_no_mlflow():
    code = "import sys, pipelines.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
