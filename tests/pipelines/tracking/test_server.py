"""A real tracking server that is killed, hangs and comes back: the record is whole, once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdci.errors import StorageError
from kdci.graph.build import graph_of
from kdci.graph.standing import card_at
from pipelines.running import journal
from pipelines.tracking.registry import Registry
from pipelines.tracking.writing.store import Store

from .conftest import summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Server:
    """`mlflow server` on a free port of the loopback interface, its files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.silent_since = 0.0

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **quiet},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def signal(self, number: int) -> None:
        self.silent_since = time.monotonic()
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(timeout=30)
            self._process = None


@pytest.fixture
def server(tmp_path, empty_store) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.kill()


def after(monkeypatch, owner, name, count, action):
    """Do ``action`` before the call number ``count`` of a method."""
    original = getattr(owner, name)
    calls = []

    def method(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


def gives_up(view, server) -> None:
    with pytest.raises(StorageError, match="does not answer") as caught:
        view.sync()
    # Of the time before that, the machine's load has its share.
    assert time.monotonic() - server.silent_since < 25
    assert len(caught.value.lines()) == 1
    assert caught.value.exit_code == 4


def test_server_that_is_killed_and_hangs_gets_everything_once(view, server, monkeypatch):
    for node in graph_of(view.params, view.root).nodes.values():
        card = (card_at(node.artifact, node.kind) or {}).get("card_sha256", "")
        links = {"prefect.task_run_id": f"task-{node.name}"}
        line = journal.Execution(node.name, "completed", "prefect", 1.0, 2.0, 0, card, links)
        journal.append(view.layout, line)
    view.sync()
    wanted = summary_of(view.state())
    remote = replace(view, uri=server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # other tests may load the machine

    points = [
        (Store, "create", 5),  # in the middle of the runs
        (Store, "log_points", 7),
        (Store, "log_datasets", 9),
        (Registry, "add", 3),  # a student is uploaded, its version not made
        (Registry, "point", 4),  # the version is made, its alias not set
    ]
    for owner, name, count in points:
        with monkeypatch.context() as fault:
            after(fault, owner, name, count, server.kill)
            gives_up(remote, server)
        server.start()

    # a server that accepts and says nothing
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.signal(signal.SIGSTOP)
    gives_up(remote, server)
    server.signal(signal.SIGCONT)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

    remote.sync()
    assert summary_of(remote.state()) == wanted
    again = remote.sync()
    assert (again.created, again.points, again.versions) == (0, 0, 0)
    assert summary_of(remote.state()) == wanted

    import mlflow

    mlflow.set_tracking_uri(server.uri)
    loaded = mlflow.pytorch.load_model("models:/kdci-digits-smoke-wrn-10-1-wrn-10-1-fast@kdci")
    import torch

    assert loaded(torch.rand(3, 1, 16, 16)).shape == (3, 10)


def test_links_are_addresses_where_a_server_shows_them(view, server, monkeypatch):
    from pipelines import tracking

    stage = "distill@wrn-10-1-wrn-10-1-fast-kdci-0-0"
    view.sync(register=False)
    where, links = tracking.links(view.layout, view.params)
    assert where == f'mlflow ui --backend-store-uri "{view.uri}" --host 127.0.0.1'
    assert links[stage] == view.run(stage).info.run_id
    assert "wrn-10-1/wrn-10-1/fast/kdci/pool0-seed0" in links and "report" in links

    remote = replace(view, uri=server.uri)
    remote.sync(register=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    where, links = tracking.links(view.layout, view.params)
    assert where.startswith(f"{server.uri}/#/experiments/")
    assert links[stage] == f"{where}/runs/{remote.run(stage).info.run_id}"
