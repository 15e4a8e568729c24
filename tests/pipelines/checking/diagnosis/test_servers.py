"""Servers that answer, are absent, or keep silent."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines.checking.diagnosis import servers
from pipelines.checking.diagnosis.doctor import exit_code
from pipelines.checking.diagnosis.findings import Level
from pipelines.checking.diagnosis.servers import check_servers
from tests.pipelines.checking.diagnosis._findings import lines, trouble
from tests.project_code import ROOT


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_without_servers_all_is_well(no_servers, tmp_path: Path) -> None:
    assert trouble(check_servers(tmp_path)) == []
    assert not (tmp_path / "mlflow.db").exists()
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to tell" * 20)
    (told,) = trouble(check_servers(tmp_path))
    assert "file is not a database" in told


def test_servers_that_answer(no_servers, tmp_path: Path) -> None:
    with answering(200) as (mlflow, asked_mlflow), answering(401) as (prefect, asked_prefect):
        no_servers.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{mlflow}/")
        no_servers.setenv("PREFECT_API_URL", f"http://127.0.0.1:{prefect}/api")
        told = lines(check_servers(tmp_path))
    assert told[0] == f"ok       MLflow at http://127.0.0.1:{mlflow}/ answers"
    assert told[1] == f"ok       Prefect at http://127.0.0.1:{prefect}/api answers, with status 401"
    assert (asked_mlflow, asked_prefect) == (["/health"], ["/api/health"])
    with answering(503) as (port, _):
        no_servers.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        assert "answers with an error: status 503" in trouble(check_servers(tmp_path))[0]


def test_silent_and_absent_servers_are_problems_within_seconds(no_servers, tmp_path: Path) -> None:
    with silent() as port, socket.create_server(("127.0.0.1", 0)) as closing:
        absent = closing.getsockname()[1]
        closing.close()
        no_servers.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
        no_servers.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        no_servers.setenv("RAY_ADDRESS", f"127.0.0.1:{absent}")
        began = time.monotonic()
        found = list(check_servers(tmp_path))
        assert time.monotonic() - began < 8.0
    told = lines(found, Level.problem)
    assert len(told) == 3
    assert f"MLflow at http://127.0.0.1:{port} does not answer: nothing within" in told[0]
    assert "Prefect at" in told[1]
    assert f"Ray at 127.0.0.1:{absent} does not answer: Connection refused" in told[2]
    assert "secret" not in "".join(lines(found))
    assert exit_code(found) == 2


def test_prefects_address_comes_from_its_active_profile(no_servers, tmp_path: Path) -> None:
    """Prefect reads its profile once a process."""
    home = tmp_path / "prefect"
    home.mkdir()
    with answering(200) as (port, asked):
        profile = (
            f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:{port}/api"\n'
        )
        (home / "profiles.toml").write_text(profile)
        script = (
            "from pathlib import Path\n"
            "from pipelines.checking.diagnosis.servers import check_servers\n"
            "print([one.line for one in check_servers(Path('.'))][1])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              cwd=ROOT, check=True)  # fmt: skip
    assert done.stdout == f"ok       Prefect at http://127.0.0.1:{port}/api answers\n"
    assert asked == ["/api/health"]


@pytest.mark.slow
def test_ray_that_listens_and_keeps_silent(no_servers, tmp_path: Path) -> None:
    no_servers.setattr(servers, "RAY_PATIENCE", 8.0)
    with silent() as port:
        no_servers.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        (told,) = lines(check_servers(tmp_path), Level.problem)
    assert f"Ray at 127.0.0.1:{port}" in told


RAY = """
import os, secrets
from pathlib import Path
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32),
                  RAY_USAGE_STATS_ENABLED="0")
import ray
from pipelines.checking.diagnosis import servers
# Another name of the loopback: Ray takes 127.0.0.1 for "find one yourself".
ray.init("local", num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.2")
os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
for token in (os.environ["RAY_AUTH_TOKEN"], secrets.token_hex(32)):
    os.environ["RAY_AUTH_TOKEN"] = token
    print(list(servers.check_servers(Path("nowhere")))[2].line)
ray.shutdown()
"""


@pytest.mark.slow
def test_a_real_ray_answers_those_who_have_its_token() -> None:
    command = [sys.executable, "-c", RAY]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=200, check=False
    )
    right, wrong = done.stdout.splitlines()[-2:]
    assert right.startswith("ok       Ray at 127.0.0.2:"), done.stderr
    assert right.endswith(" answers")
    assert wrong.startswith("problem  Ray at 127.0.0.2:"), done.stderr
    assert "token is missing or incorrect" in wrong
