"""`kdci doctor` against real things: locks of dead processes, orphans, servers that keep silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from kdci.store import artifacts
from kdci.store.layout import Layout
from pipelines.checking.diagnosis import disk, servers
from pipelines.checking.diagnosis.disk import check_disk, largest_artifact
from pipelines.checking.diagnosis.doctor import examine, exit_code, repaired
from pipelines.checking.diagnosis.findings import Finding, Level, ok, problem, warning
from pipelines.checking.diagnosis.leftovers import check_leftovers
from pipelines.checking.diagnosis.locks import check_locks
from pipelines.checking.diagnosis.processes import check_processes
from pipelines.checking.diagnosis.servers import check_servers
from pipelines.checking.diagnosis.versions import (
    check_metadata,
    check_prefect_server,
    check_versions,
)
from pipelines.cli import run
from tests.project_code import ROOT


def lines(findings: Iterator[Finding] | list[Finding], *levels: Level) -> list[str]:
    return [one.line for one in findings if one.level in (levels or tuple(Level))]


def trouble(findings: Iterator[Finding]) -> list[str]:
    return lines(findings, Level.warning, Level.problem)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path, "digits-smoke")


# -- versions -------------------------------------------------------------------------------------


def distribution(folder: Path, name: str, version: str, *more: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(text + "".join(f"{line}\n" for line in more))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose distributions come before those that are really installed."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def test_versions_here_are_within_their_bounds() -> None:
    found = list(check_versions())
    assert trouble(iter(found)) == []
    assert any("Python 3." in one.what for one in found)


def test_versions_beyond_a_bound_are_named(installed: Path) -> None:
    distribution(installed, "fastapi", "0.160.0")
    distribution(installed, "dvc", "3.50.1")
    assert trouble(check_versions()) == [
        "problem  dvc 3.50.1 is below the floor >=3.67  (pip install 'dvc>=3.67')",
        "problem  fastapi 0.160.0 is above the cap <0.151  (pip install 'fastapi<0.151,>=0.139')",
    ]


def test_missing_packages_and_extras(installed: Path) -> None:
    distribution(
        installed,
        "kdci",
        "9.9",
        "Requires-Python: >=4",
        "Provides-Extra: sweep",
        "Provides-Extra: dev",
        "Requires-Dist: typer>=0.1",
        "Requires-Dist: no-such-package>=1",
        "Requires-Dist: none-for-this; python_version < '3'",
        "Requires-Dist: no-such-ray[tune]>=2; extra == 'sweep'",
        "Requires-Dist: pytest>=999; extra == 'dev'",
        "Requires-Dist: no-such-linter; extra == 'dev'",
    )
    told = lines(check_versions())
    assert any("problem  Python 3." in line and "is not >=4" in line for line in told)
    assert "problem  not installed: no-such-package  (run `make setup`)" in told
    assert "ok       packages within their bounds: 1" in told
    sweep = "ok       not installed: sweep  (pip install 'kdci[sweep]' if it is needed)"
    assert sweep in told
    assert any("not installed: dev (no-such-linter)" in line for line in told)
    assert any("is below the floor >=999" in line for line in told)
    assert not any("none-for-this" in line for line in told)


def test_metadata_older_than_pyproject(installed: Path, tmp_path: Path) -> None:
    distribution(installed, "kdci", "1", "Provides-Extra: x", 'Requires-Dist: a>=1; extra == "x"')
    text = '[project]\nname = "kdci"\n[project.optional-dependencies]\nx = ["a >= 1"]\n'
    (tmp_path / "pyproject.toml").write_text(text)
    assert lines(check_metadata(tmp_path)) == []
    (tmp_path / "pyproject.toml").write_text(text.replace(">= 1", ">= 2"))
    assert "pyproject.toml asks for other packages" in trouble(check_metadata(tmp_path))[0]
    (tmp_path / "pyproject.toml").write_text("[project")
    assert "can not be read" in trouble(check_metadata(tmp_path))[0]
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert lines(check_metadata(tmp_path)) == []


@pytest.mark.slow
def test_prefects_server_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_prefect_server().line.startswith("ok       Prefect's server loads, in ")
    # A FastAPI whose Body refuses what Prefect gives it, as from 0.151 on.
    (tmp_path / "sitecustomize.py").write_text(
        "import fastapi\n"
        "body = fastapi.Body\n"
        "def strict(*args, min_items=None, **kwargs):\n"
        "    if min_items is not None:\n"
        "        raise TypeError('Body() got an unexpected keyword argument')\n"
        "    return body(*args, **kwargs)\n"
        "fastapi.Body = strict\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = check_prefect_server()
    assert found.level is Level.problem
    assert "TypeError: Body() got an unexpected keyword argument" in found.line


# -- locks ----------------------------------------------------------------------------------------


def rwlock(tiny) -> Path:
    return tiny.root / ".dvc/tmp/rwlock"


def test_dvcs_list_names_dead_processes_and_is_mended(tiny) -> None:
    gone, place = dead_pid(), str(tiny.root / "artifacts/tiny/pools/fast")
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        entry = {"pid": gone, "cmd": "dvc repro"}
        working = {"pid": alive.pid, "cmd": "dvc pull"}
        time.sleep(0.1)
        listed = {"write": {place: entry}, "read": {str(tiny.root / "stages"): [entry, working]}}
        rwlock(tiny).write_text(json.dumps(listed))
        assert trouble(check_locks(tiny.layout)) == [
            "warning  DVC has artifacts/tiny/pools/fast and 1 more paths as in use by process "
            f"{gone} (dvc repro), which is gone  (kdci doctor --fix)"
        ]
        assert trouble(repaired(check_locks(tiny.layout))) == []
        left = {"write": {}, "read": {str(tiny.root / "stages"): [working]}}
        assert json.loads(rwlock(tiny).read_text()) == left
        told = lines(check_locks(tiny.layout))
        assert f"ok       DVC has stages as in use by process {alive.pid} (dvc pull)" in told
    finally:
        alive.kill()
        alive.wait()


def test_a_process_number_that_is_anothers_now_blocks_dvc_until_it_is_mended(tiny) -> None:
    """DVC itself mends entries of dead processes only."""
    place = str(tiny.root / "artifacts/tiny/pools/fast")
    rwlock(tiny).parent.mkdir(exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        listed = {"write": {place: {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}
        rwlock(tiny).write_text(json.dumps(listed))
        an_hour_ago = time.time() - 3600
        os.utime(rwlock(tiny), (an_hour_ago, an_hour_ago))
        tiny.edit("methods.fast.num_steps", 4)
        with pytest.raises(AssertionError, match="is busy, it is being blocked by"):
            tiny.dvc("repro", "substitute@fast")
        # The failed attempt wrote the list anew; it is as old as it was again.
        os.utime(rwlock(tiny), (an_hour_ago, an_hour_ago))
        found = list(check_locks(tiny.layout))
        assert exit_code(found) == 2
        assert "that is another process now" in trouble(iter(found))[0]
        assert exit_code(list(repaired(found))) == 0
        assert "substitute@fast" in tiny.repro("substitute@fast")[0]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_damaged_list_is_a_problem(tiny) -> None:
    for text in ("{", '{"write": {"a": 3}}', "[]"):
        rwlock(tiny).write_text(text)
        (told,) = trouble(check_locks(tiny.layout))
        assert told.endswith(f"rwlock is damaged, and DVC refuses to work  (rm {rwlock(tiny)})")


def test_notes_of_dead_holders_are_removed_and_those_of_live_ones_kept(layout: Layout) -> None:
    locks = layout.work / "locks"
    locks.mkdir(parents=True)
    for name in ("ended", "at-work"):
        (locks / f"{name}.lock").touch()
        (locks / f"{name}.holder").write_text(f"{os.getpid()} since noon\n")
    runner = layout.work / "run.lock"
    runner.touch()
    (layout.work / "run.holder").write_text(f"kdci run, process {dead_pid()} since noon\n")
    with FileLock(locks / "at-work.lock"):
        told = lines(check_locks(layout))
        assert f"ok       stage at-work is in use by process {os.getpid()} since noon" in told
        assert any(line.startswith("warning  the workspace is free; kdci run") for line in told)
        assert trouble(repaired(check_locks(layout))) == []
        assert {file.name for file in layout.work.rglob("*.holder")} == {"at-work.holder"}
    assert lines(check_locks(layout))[0] == "ok       no runner holds the workspace"


def test_a_lock_that_a_child_of_a_dead_process_holds(layout: Layout) -> None:
    lock = layout.work / "run.lock"
    lock.parent.mkdir(parents=True)
    # flock goes with the open file: `sleep` inherits it.
    script = (
        "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(f, fcntl.LOCK_EX); os.set_inheritable(f, True)\n"
        "print(flush=True); os.execvp('sleep', ['sleep', '60'])"
    )
    command = [sys.executable, "-c", script, str(lock)]
    heir = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert heir.stdout is not None
        heir.stdout.readline()
        (layout.work / "run.holder").write_text(f"kdci run, process {dead_pid()} since noon\n")
        (told,) = trouble(check_locks(layout))
        assert told.startswith("problem  the workspace is held, yet its holder is gone: kdci run")
        assert f"(kill {heir.pid}: " in told
        assert trouble(repaired(check_locks(layout))) == [told]
    finally:
        heir.kill()
        heir.wait()
        heir.stdout.close()


def test_dvcs_own_lock(tiny) -> None:
    script = (
        "import sys, time; from dvc.repo import Repo\n"
        "with Repo(sys.argv[1]) as repo, repo.lock: print(flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny.root)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        told = lines(check_locks(tiny.layout))
        assert any(f"DVC's lock is in use by process {process.pid}: " in line for line in told)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not any("DVC's lock" in line for line in lines(check_locks(tiny.layout)))
    host = os.uname().nodename
    (tiny.root / ".dvc/tmp/lock").write_text(f"/x/lock|{host}|{dead_pid()}|17")  # hardlink_lock
    assert "DVC's lock was left by process" in trouble(check_locks(tiny.layout))[0]


# -- processes ------------------------------------------------------------------------------------

SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(60)\n"
STARTER = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen(sys.argv[1:])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)\n"
)


@contextmanager
def started(root: Path, *command: str, **settings: str) -> Iterator[tuple[int, int]]:
    """Start a process that starts another; yield the ids of both and end them."""
    (root / "stages").mkdir(exist_ok=True)
    (root / "stages" / "__init__.py").touch()
    (root / "stages" / "sleeper.py").write_text(SLEEPER)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, *command],
        cwd=root,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    child = 0
    try:
        for line in iter(starter.stdout.readline, ""):
            child = child or (int(line) if line.strip().isdigit() else 0)
            if child and line.strip() == "up":
                break
        yield starter.pid, child
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()
        if child and psutil.pid_exists(child):
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(child))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


STAGE = (sys.executable, "-m", "stages.sleeper", "--teacher", "a")


@pytest.mark.parametrize("settings", [{}, {"DVC_STAGE": "sleeper@a"}])
def test_an_orphaned_stage_is_named_and_left_alone(tmp_path: Path, settings: dict) -> None:
    with started(tmp_path, *STAGE, **settings) as (starter, stage):
        if not settings:
            (told,) = lines(check_processes(tmp_path))
            assert told == f"ok       at work here: stages.sleeper --teacher a ({stage})"
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(stage).ppid() != starter)
        (told,) = lines(repaired(check_processes(tmp_path)))
        assert told == (
            f"problem  stages.sleeper --teacher a (process {stage}) is at work here, and what "
            f"started it is gone  (kill {stage}; it saves its state first)"
        )
        assert psutil.pid_exists(stage)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        assert lines(check_processes(elsewhere)) == ["ok       no process is left over here"]


def test_a_server_that_was_left_is_a_warning(tmp_path: Path) -> None:
    program = tmp_path / "mlflow"
    program.write_text(SLEEPER)
    command = (sys.executable, str(program), "server", "--port", "0")
    with started(tmp_path, *command) as (starter, server):
        assert lines(check_processes(tmp_path)) == [
            f"ok       at work here: mlflow server ({server})"
        ]
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(server).ppid() != starter)
        (told,) = lines(check_processes(tmp_path))
        assert told.startswith(f"warning  mlflow server (process {server}) is at work here")
        assert f"(kill {server}, unless it is meant to stay)" in told


def test_a_command_that_was_left_to_itself_is_none(tmp_path: Path) -> None:
    """`nohup kdci run &`, and the terminal closed."""
    program = tmp_path / "kdci"
    program.write_text(SLEEPER)
    with started(tmp_path, sys.executable, str(program), "run") as (starter, command):
        os.kill(starter, signal.SIGKILL)
        wait_for(lambda: psutil.Process(command).ppid() != starter)
        assert lines(check_processes(tmp_path)) == ["ok       no process is left over here"]


def test_a_stage_of_a_living_runner_is_no_orphan(tmp_path: Path) -> None:
    """DVC's own line of processes: the runner, DVC, a shell, the stage in its own session."""
    program = tmp_path / "dvc"
    program.write_text(
        "import subprocess, sys\nsubprocess.Popen(sys.argv[1:], start_new_session=True).wait()\n"
    )
    command = (sys.executable, str(program), *STAGE)
    with started(tmp_path, *command, DVC_STAGE="sleeper@a") as (starter, dvc):
        (stage,) = psutil.Process(dvc).children()
        at_work = f"ok       at work here: stages.sleeper --teacher a ({stage.pid})"
        try:
            assert lines(check_processes(tmp_path)) == [at_work]
            os.kill(starter, signal.SIGKILL)
            wait_for(lambda: psutil.Process(dvc).ppid() != starter)
            runner, told = lines(check_processes(tmp_path))
            assert f"(process {dvc}) is at work here" in runner
            assert runner.startswith("warning  dvc ")
            assert told == at_work
        finally:
            stage.kill()


# -- servers --------------------------------------------------------------------------------------


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


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setattr(servers, "PATIENCE", 0.5)
    return monkeypatch


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


# -- disk and leftovers ---------------------------------------------------------------------------


def test_room_is_measured_against_the_largest_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert largest_artifact(tmp_path) == 0
    for name, length in (("small", 10), ("large", 1000)):
        with artifacts.new_artifact(tmp_path / "artifacts" / name, kind="pool", card={}) as draft:
            draft.save_json("a.json", "x" * length)
    (tmp_path / "artifacts/small/card.json").write_text("{")  # damaged: `kdci verify` tells
    largest = largest_artifact(tmp_path)
    assert 1000 <= largest < 1100

    free = shutil.disk_usage(tmp_path).free
    (fine,) = check_disk({"the project": tmp_path / "not" / "yet"}, largest)
    assert fine.level is (Level.ok if free > 10**9 else Level.warning)
    (tight,) = check_disk({"the project": tmp_path}, 2 * free)
    assert (tight.level, tight.exit_code) == (Level.problem, 4)
    assert "the largest artifact takes" in tight.line
    monkeypatch.setattr(disk, "SCARCE_BYTES", 2 * free)
    (scarce,) = check_disk({"the project": tmp_path}, largest)
    assert scarce.level is Level.warning
    assert exit_code([scarce, tight, problem("another")]) == 4


def test_sizes() -> None:
    told = {0: "0 bytes", 999: "999 bytes", 1500: "2 kB", 2_000_000: "2 MB", 3.5e9: "3.5 GB"}
    assert {number: disk.size(number) for number in told} == told


def test_leftovers_are_counted(layout: Layout) -> None:
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", layout.root / "params.yaml")
    assert lines(check_leftovers(layout)) == ["ok       no checkpoint is left over"]
    orphan = layout.work / "work" / "teacher@gone" / "0123456789abcdef"
    orphan.mkdir(parents=True)
    (orphan / "state.pt").write_bytes(b"x" * 3000)
    (layout.root / "artifacts/digits-smoke/pools/.pool0.abcd1234.tmp").mkdir(parents=True)
    assert lines(check_leftovers(layout)) == [
        "warning  2 left-over folders, 3 kB  (run `kdci clean`)"
    ]
    assert orphan.is_dir()
    (layout.root / "params.yaml").write_text("preset: 3\n")
    assert "run `kdci check`" in trouble(check_leftovers(layout))[0]


# -- the command ----------------------------------------------------------------------------------


def test_exit_code_is_that_of_the_gravest_problem() -> None:
    assert exit_code([]) == 0
    assert exit_code([ok("a"), warning("b")]) == 0
    assert exit_code([problem("a"), warning("b")]) == 2


def test_what_mends_several_findings_is_done_once() -> None:
    done = []

    def mend() -> str:
        done.append(1)
        return "mended"

    found = list(repaired([warning("a", "fix", mend), ok("b"), problem("c", repair=mend)]))
    assert lines(found) == ["ok       a: mended", "ok       b", "ok       c: mended"]
    assert done == [1]


@pytest.fixture
def project(tiny, no_servers) -> Path:
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", tiny.root / "params.yaml")
    no_servers.chdir(tiny.root)
    return tiny.root


def test_the_command_in_a_project(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = dead_pid()
    listed = {"write": {str(project / "a"): {"pid": gone, "cmd": "dvc repro"}}, "read": {}}
    (project / ".dvc/tmp/rwlock").write_text(json.dumps(listed))
    assert run(["doctor"]) == 0  # a dead process is in nobody's way: DVC mends it too
    told = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in told} == {"ok", "warning"}
    assert "DVC has a as in use by process" in "".join(told)
    assert any(line.startswith("ok       DVC's cache: ") for line in told)
    assert any("telemetry" in line or "DVC reports its use" in line for line in told)

    (project / ".dvc/tmp/rwlock").write_text("{")
    assert run(["doctor"]) == 2
    assert "problem" in capsys.readouterr().out


def test_dvcs_reports_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_NO_ANALYTICS", raising=False)
    said = "DVC reports its use to its makers"
    assert any(said in one.what for one in examine(project))
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    monkeypatch.delenv("DVC_NO_ANALYTICS", raising=False)
    assert not any(said in one.what for one in examine(project))


def test_outside_of_a_project_there_are_versions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "Python 3." in told
    assert "workspace" not in told
    assert run(["--root", "nowhere", "doctor"]) == 2
