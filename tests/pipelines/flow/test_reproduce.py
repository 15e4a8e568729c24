"""`kdci run` with real Prefect servers: what they show, and that they cost no work."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from tests.conftest import Project
from tests.pipelines._servers import (
    CELL,
    PrefectServer,
    RunProject,
    blank_project,
    finish,
    free_port,
    until,
    warnings_of,
)

pytestmark = pytest.mark.slow

SHOWN_SECONDS = 30.0
"""How long a server may take to show what it was told."""
STAGES = {
    "teacher@wrn-10-1",
    *(
        f"{stage}@wrn-10-1-{m}-0"
        for stage in ("substitute", "dictionary")
        for m in ("fast", "dfnd")
    ),
    *(
        f"distill@{CELL}-{method}-{arm}-0-0"
        for arm in ("vanilla", "kdci")
        for method in ("fast", "dfnd")
    ),
    *(f"evaluate@{CELL}-{method}" for method in ("fast", "dfnd")),
    "report",
}
OF_DFND_RECIPE = {
    f"distill@{CELL}-dfnd-vanilla-0-0",
    f"distill@{CELL}-dfnd-kdci-0-0",
    f"evaluate@{CELL}-dfnd",
    "report",
}
"""What a change of DFND's recipe reaches, worked out by hand from the graph."""
LOOPBACK = ("127.0.0.1", "::1")


# -- what a server shows ---------------------------------------------------------------------------


def latest_flow_run(client: Any) -> Any:
    from prefect.client.schemas.sorting import FlowRunSort

    return client.read_flow_runs(limit=1, sort=FlowRunSort.EXPECTED_START_TIME_DESC)[0]


def task_runs(client: Any, flow_run_id: UUID) -> dict[str, Any]:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    return {run.name: run for run in client.read_task_runs(flow_run_filter=chosen, limit=200)}


def shown(server: PrefectServer, number: int = len(STAGES)) -> tuple[Any, dict[str, Any]]:
    """Return the latest flow run and its task runs by stage, once all that are final."""
    with server.client() as client:
        run = until(
            lambda: (found := latest_flow_run(client)).state.is_final() and found,
            SHOWN_SECONDS,
            "the flow run is over",
        )

        def all_final() -> dict[str, Any] | None:
            found = task_runs(client, run.id)
            over = all(_is_over(task.state) for task in found.values())
            return found if over and len(found) == number else None

        return run, until(all_final, SHOWN_SECONDS, "the tasks are over")


def _is_over(state: Any) -> bool:
    """Tell whether nothing more becomes of a task; `NotReady` is final for us, not for Prefect."""
    return state is not None and (state.is_final() or state.name == "NotReady")


def states(tasks: Mapping[str, Any]) -> dict[str, str]:
    return {name: task.state.name for name, task in tasks.items()}


def log_of(server: PrefectServer, task_run_id: UUID, line: str) -> str:
    """Return a task run's log once it has ``line``."""
    from prefect.client.schemas.filters import LogFilter, LogFilterTaskRunId

    chosen = LogFilter(task_run_id=LogFilterTaskRunId(any_=[task_run_id]))
    with server.client() as client:

        def read() -> str | None:
            text = "\n".join(entry.message for entry in client.read_logs(log_filter=chosen))
            return text if line in text else None

        return str(until(read, SHOWN_SECONDS, f"the log has {line!r}"))


def artifacts_of(server: PrefectServer, flow_run_id: UUID, keys: set[str]) -> dict[str, Any]:
    """Return a flow run's artifacts by key, once those of ``keys`` are there."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    with server.client() as client:

        def read() -> dict[str, Any] | None:
            found = {one.key: one for one in client.read_artifacts(artifact_filter=chosen)}
            return found if keys <= set(found) else None

        return dict(until(read, SHOWN_SECONDS, f"there are artifacts {keys}"))


POOLS = {f"kdci-pool-substitute-wrn-10-1-{method}-0" for method in ("fast", "dfnd")}
DICTIONARIES = {f"kdci-dictionary-dictionary-wrn-10-1-{method}-0" for method in ("fast", "dfnd")}
RESULTS, MLFLOW = "kdci-results-digits-smoke", "kdci-mlflow-digits-smoke"


def require_artifacts(server: PrefectServer, project: RunProject, flow_run_id: UUID) -> None:
    from PIL import Image

    found = artifacts_of(server, flow_run_id, {*POOLS, *DICTIONARIES, RESULTS, MLFLOW})
    assert set(found) == {*POOLS, *DICTIONARIES, RESULTS, MLFLOW}
    for key in POOLS:
        url = found[key].data
        assert url.startswith("data:image/png;base64,")
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 50
    for key in DICTIONARIES:
        rows = json.loads(found[key].data)
        shares = [row["P(z), %"] for row in rows]
        assert abs(sum(shares) - 100) <= 0.005 * len(shares) + 1e-9
        assert shares == sorted(shares, reverse=True)
    table = found[RESULTS].data
    shown_again = project.kdci("show").stdout
    assert shown_again.strip() in table
    assert "Fast" in table and "DFND" in table
    assert all(stage in found[MLFLOW].data for stage in STAGES - {"report"})


def test_first_run_second_run_one_change_and_back(
    prefect_server: PrefectServer, smoke_project: Project, tmp_path: Path
) -> None:
    project = blank_project(tmp_path / "project", smoke_project)
    url = {"PREFECT_API_URL": prefect_server.url}

    done = project.run_through(**url)
    assert warnings_of(done) == []
    run, tasks = shown(prefect_server)
    assert states(tasks) == dict.fromkeys(STAGES, "Completed")
    assert run.state.name == "Completed"
    assert run.state.message == "12 stages: 12 completed"
    assert run.name == "digits-smoke"
    log = log_of(prefect_server, tasks[f"distill@{CELL}-fast-kdci-0-0"].id, "distilling 12/12")
    assert "agreement" in log
    assert "bank" not in log_of(prefect_server, tasks["teacher@wrn-10-1"].id, "training 16/16")
    require_artifacts(prefect_server, project, run.id)
    entries = {entry.stage: entry for entry in project.journal()}
    assert set(entries) == STAGES
    for stage, entry in entries.items():
        assert entry.links["prefect.flow_run_id"] == str(run.id)
        assert entry.links["prefect.task_run_id"] == str(tasks[stage].id)
        assert str(run.id) in entry.links["prefect.flow_run_url"]
    assert all(
        tasks[stage].start_time >= tasks["teacher@wrn-10-1"].end_time
        for stage in STAGES - {"teacher@wrn-10-1"}
    )
    assert project.contents() == RunProject(smoke_project.root).contents()

    began = time.monotonic()
    done = project.run_through(**url)
    print(f"everything cached, beside a server: {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 60
    run, tasks = shown(prefect_server)
    assert states(tasks) == dict.fromkeys(STAGES, "Cached")
    assert run.state.name == "Cached"
    assert run.state.is_completed()

    for learning_rate, state in ((0.05, "Completed"), (0.1, "Restored")):
        before = len(project.journal())
        project.edit(recipes__dfnd__learning_rate=learning_rate)
        project.run_through("--no-track", **url)
        _, tasks = shown(prefect_server)
        expected = dict.fromkeys(OF_DFND_RECIPE, state)
        expected["report"] = "Completed"  # DVC keeps no cache of what it makes
        assert states(tasks) == {name: expected.get(name, "Cached") for name in STAGES}
        assert project.ran(since=before) == {name: s.lower() for name, s in expected.items()}
    assert _dvc_status(project).keys() <= {"cells"}  # which is always looked at


def _dvc_status(project: RunProject) -> Any:
    done = subprocess.run(
        ["dvc", "status", "--json"],
        cwd=project.root,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


FAULT = """
if any("-dfnd-" in word for word in sys.argv):
    sys.exit("kdci: error: predictions: are not finite (try another seed)")
"""


def test_a_failed_stage_shows_its_own_words_and_what_needs_it_is_not_run(
    prefect_server: PrefectServer, up_to_date: RunProject
) -> None:
    """DFND's dictionary fails; DFND's vanilla student and all of Fast go on."""
    file = up_to_date.root / "stages/dictionary.py"
    guard = 'if __name__ == "__main__":'
    text = file.read_text()
    assert guard in text
    file.write_text(text.replace(guard, f"import sys\n{FAULT}\n{guard}"))
    up_to_date.edit(recipes__dfnd__learning_rate=0.05, recipes__fast__learning_rate=0.05)
    done = up_to_date.kdci("run", PREFECT_API_URL=prefect_server.url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "kdci: error: predictions: are not finite" in done.stderr
    run, tasks = shown(prefect_server)
    failed = "dictionary@wrn-10-1-dfnd-0"
    not_run = {f"distill@{CELL}-dfnd-kdci-0-0", f"evaluate@{CELL}-dfnd", "report"}
    cached = {"teacher@wrn-10-1", *(f"substitute@wrn-10-1-{m}-0" for m in ("fast", "dfnd"))}
    found = states(tasks)
    assert found[failed] == "Failed"
    assert "predictions: are not finite (try another seed)" in tasks[failed].state.message
    assert {name for name in STAGES if found[name] in ("NotReady", "Cancelled")} == not_run
    assert {name for name in STAGES if found[name] == "Cached"} == cached
    assert {name for name in STAGES if found[name] == "Completed"} == (
        STAGES - {failed} - not_run - cached
    )
    assert run.state.is_failed()
    assert "predictions: are not finite" in run.state.message
    assert set(up_to_date.ran()) == STAGES - not_run - cached


def test_cancel_in_the_ui_stops_the_run(
    prefect_server: PrefectServer, up_to_date: RunProject
) -> None:
    from prefect.states import Cancelling

    student = f"distill@{CELL}-dfnd-vanilla-0-0"
    up_to_date.edit(recipes__dfnd__num_epochs=4, recipes__dfnd__steps_per_epoch=2000)
    process = up_to_date.start("run", "--no-track", PREFECT_API_URL=prefect_server.url)
    up_to_date.await_stage(student)
    with prefect_server.client() as client:
        run = latest_flow_run(client)
        client.set_flow_run_state(run.id, Cancelling(), force=True)
    began = time.monotonic()
    code, out, err = finish(process, 60)
    print(f"cancelled: ended in {time.monotonic() - began:.1f} s")
    assert code == 143, out + err
    assert up_to_date.stages_alive() == []
    assert up_to_date.ran()[student] == "stopped"
    assert "completed" not in set(up_to_date.ran().values())
    shown_run, tasks = shown(prefect_server)
    assert shown_run.id == run.id
    assert shown_run.state.is_cancelled()
    assert states(tasks)[student] == "Cancelled"
    assert states(tasks)["report"] in ("Cancelled", "NotReady")


# -- servers that fail -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(run_recorded: RunProject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the artifacts hold after a change of DFND's recipe, by `kdci run --no-prefect`."""
    project = run_recorded.copy(tmp_path_factory.mktemp("plain") / "project")
    before = project.contents()
    project.edit(recipes__dfnd__learning_rate=0.05)
    project.run_through("--no-prefect", "--no-track")
    after = project.contents()
    assert sum(after[name] != before[name] for name in after) == 3  # two students, one evaluation
    return after


def require_same_work(
    done: subprocess.CompletedProcess[str], project: RunProject, plain: Mapping[str, str]
) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(warnings_of(done)) == 1, done.stderr
    assert done.stderr.splitlines() == warnings_of(done)
    assert project.ran() == dict.fromkeys(OF_DFND_RECIPE, "completed")
    assert project.contents() == plain


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


@pytest.mark.parametrize("server", ["dead", "silent"])
def test_a_server_that_does_not_answer_costs_a_warning_and_no_work(
    server: str, silent_url: str, up_to_date: RunProject, plain: dict[str, str]
) -> None:
    url = silent_url if server == "silent" else f"http://127.0.0.1:{free_port()}/api"
    up_to_date.edit(recipes__dfnd__learning_rate=0.05)
    done = up_to_date.kdci("run", "--no-track", PREFECT_API_URL=url)
    require_same_work(done, up_to_date, plain)
    assert "does not answer" in warnings_of(done)[0]


def test_a_server_killed_in_the_middle_costs_a_warning_and_no_work(
    up_to_date: RunProject, tmp_path: Path, plain: dict[str, str]
) -> None:
    server = PrefectServer(tmp_path / "server")
    try:
        server.await_ready()
        up_to_date.edit(recipes__dfnd__learning_rate=0.05)
        process = up_to_date.start("run", "--no-track", "--limit", "1", PREFECT_API_URL=server.url)
        until(up_to_date.stages_alive, 60, "a stage is at work")
    finally:
        server.kill()
    killed = time.monotonic()
    code, out, err = finish(process)
    print(f"server killed: the run went on for {time.monotonic() - killed:.1f} s")
    done = subprocess.CompletedProcess(process.args, code, out, err)
    require_same_work(done, up_to_date, plain)
    assert up_to_date.stages_alive() == []


# -- without a server, and who is talked to --------------------------------------------------------

LISTENER = '''
"""Notes every address that a Python process of the run resolves, binds or connects to."""
import os, sys

_file = os.environ.get("SOCKET_AUDIT")

def _note(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        address = arguments[1]
    elif event == "socket.getaddrinfo":
        address = arguments[:2]
    else:
        return
    if isinstance(address, tuple):
        with open(_file, "a") as out:
            out.write(f"{event}\\t{address[0]}\\n")

if _file:
    sys.addaudithook(_note)
'''


class Watch:
    """Notes the sockets of a process and of all that it starts, for as long as the block lasts."""

    def __init__(self, pid: int) -> None:
        self.listening: set[str] = set()
        self.remote: set[str] = set()
        self._over = threading.Event()
        self._process = psutil.Process(pid)
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._over.wait(0.2):
            try:
                tree = [self._process, *self._process.children(recursive=True)]
            except psutil.Error:
                return
            for process in tree:
                self._note(process)

    def _note(self, process: psutil.Process) -> None:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            return
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                self.listening.add(one.laddr.ip)
            elif one.raddr:
                self.remote.add(one.raddr.ip)


def test_embedded_it_does_the_same_and_talks_to_nobody_beyond_this_machine(
    up_to_date: RunProject, tmp_path: Path, plain: dict[str, str]
) -> None:
    began = time.monotonic()
    done = up_to_date.run_through("--no-track")
    print(f"everything cached, embedded: {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 90
    assert warnings_of(done) == []
    assert "12 stages: 12 cached" in done.stdout
    assert up_to_date.ran() == {}

    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(LISTENER)
    notes = tmp_path / "sockets.txt"
    up_to_date.edit(recipes__dfnd__learning_rate=0.05)
    process = up_to_date.start(
        "run",
        PYTHONPATH=os.pathsep.join([str(up_to_date.root), str(hook)]),
        SOCKET_AUDIT=str(notes),
    )
    with Watch(process.pid) as watch:
        code, out, err = finish(process)
    assert code == 0, out + err
    assert [line for line in err.splitlines() if line.startswith("kdci: warning")] == []
    assert up_to_date.ran() == dict.fromkeys(OF_DFND_RECIPE, "completed")
    assert {entry.runner for entry in up_to_date.journal()} == {"prefect"}
    assert all("prefect.task_run_id" in entry.links for entry in up_to_date.journal())
    assert up_to_date.contents() == plain

    assert watch.listening, "not even Prefect's own server was seen"
    assert watch.listening <= set(LOOPBACK)
    assert watch.remote <= set(LOOPBACK)
    told = {tuple(line.split("\t")) for line in notes.read_text().splitlines()}
    assert ("socket.connect", "127.0.0.1") in told, "the audit sees nothing"
    beyond = {(event, address) for event, address in told if not _is_here(address)}
    assert beyond == set()


def _is_here(address: str) -> bool:
    return address in (*LOOPBACK, "localhost", "None", "")
