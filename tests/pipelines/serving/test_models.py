"""`kdci run --serve`: runs that are started in Prefect's UI take effect, and Ctrl-C ends all."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.params.presets import preset_text
from tests.pipelines._servers import (
    CELL,
    PrefectServer,
    RunProject,
    end_tree,
    finish,
    free_port,
    until,
)
from tests.project_code import ROOT

LONG = {"recipes__dfnd__num_epochs": 4, "recipes__dfnd__steps_per_epoch": 2000}


def serving_alone(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return what becomes of `kdci run --serve` where it can not serve."""
    project = RunProject(tmp_path / "project")
    project.root.mkdir()
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    (project.root / "params.yaml").write_text(preset_text("digits-smoke"))
    root = str(ROOT)
    return project.kdci("run", "--serve", timeout=60, PYTHONPATH=root, **environment)


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = serving_alone(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("kdci: error: PREFECT_API_URL: names no Prefect server")
    assert "prefect server start" in line


def test_with_a_dead_server_it_says_so_in_seconds(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = serving_alone(tmp_path, PREFECT_API_URL=url)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kdci: error: {url}: the Prefect server does not answer")


@contextmanager
def serving(project: RunProject, server: PrefectServer) -> Iterator[subprocess.Popen[str]]:
    """Serve the deployment for the block; the test ends it, or it is killed."""
    process = project.start("run", "--serve", PREFECT_API_URL=server.url)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("deployment kdci/kdci: start runs at http://127.0.0.1:"), line
        yield process
    finally:
        end_tree(process.pid)
        process.wait()


def started(server: PrefectServer, **parameters: Any) -> Any:
    """Start a flow run of the deployment, as the UI does, and return its id."""
    with server.client() as client:
        deployment = client.read_deployment_by_name("kdci/kdci")
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id


def state_of(server: PrefectServer, flow_run_id: Any) -> Any:
    with server.client() as client:
        return client.read_flow_run(flow_run_id).state


@pytest.mark.slow
def test_a_run_started_in_the_server_takes_its_parameters_and_ctrl_c_ends_all(
    prefect_server: PrefectServer, up_to_date: RunProject
) -> None:
    student = f"distill@{CELL}-dfnd-vanilla-0-{{}}"
    with serving(up_to_date, prefect_server) as process:
        with prefect_server.client() as client:
            schema = client.read_deployment_by_name("kdci/kdci").parameter_openapi_schema
        assert set(schema["properties"]) == {"preset", "targets", "seeds", "limit"}

        flow_run = started(
            prefect_server,
            preset="digits-smoke",
            targets=[student.format("*")],
            seeds=[0, 3],
            limit=1,
        )
        state = until(
            lambda: (found := state_of(prefect_server, flow_run)).is_final() and found,
            180,
            "the flow run is over",
        )
        assert state.is_completed(), state.message
        # the teacher, the pool, and two students: one was there
        assert state.message == "4 stages: 1 completed, 3 cached"
        assert tuple(up_to_date.params.grid.seeds) == (0, 3)
        assert up_to_date.ran() == {student.format(3): "completed"}
        (entry,) = up_to_date.journal()
        assert entry.runner == "prefect"
        assert entry.links["prefect.flow_run_id"] == str(flow_run)

        # A preset must not cost a human's edits, whoever asks for it.
        up_to_date.edit(**LONG)
        edited = (up_to_date.root / "params.yaml").read_text()
        refused = started(prefect_server, preset="digits")
        state = until(
            lambda: (found := state_of(prefect_server, refused)).is_final() and found,
            120,
            "the flow run is over",
        )
        assert state.is_failed()
        assert "has edits that the preset would replace" in state.message
        assert (up_to_date.root / "params.yaml").read_text() == edited

        before = len(up_to_date.journal())
        stopped = started(prefect_server, targets=[student.format(0)])
        up_to_date.await_stage(student.format(0))
        tree = psutil.Process(process.pid).children(recursive=True)
        assert tree
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        code, out, err = finish(process, 90)
        print(f"Ctrl-C: ended with {code} in {time.monotonic() - began:.1f} s")
        assert code == 0, out + err
        assert psutil.wait_procs(tree, timeout=1)[1] == []
        assert up_to_date.ran(since=before) == {student.format(0): "stopped"}
        # Not running for ever: the deployment would have no place for another.
        assert state_of(prefect_server, stopped).is_cancelled()
        assert list(up_to_date.root.glob(f".kdci/work/{student.format(0)}/*/checkpoint-*.json"))
