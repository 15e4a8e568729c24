"""A Prefect server of the tests' own, and projects that `kdci run` is tried on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.running.journal import Execution, read
from tests.conftest import Project

READY_SECONDS = 120.0
TIMEOUT = 240.0
CELL = "wrn-10-1-wrn-10-1"
TELEMETRY_OFF = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return what ``true`` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return found


def end_tree(pid: int) -> None:
    """Kill a process that a test started, and all that it started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=10)


class PrefectServer:
    """`prefect server start` on loopback, with a database of its own.

    Attributes:
        home: Its ``PREFECT_HOME``.
        url: Its API.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "prefect", "server", "start"]
        self._process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **TELEMETRY_OFF, "PREFECT_HOME": str(home)},
            cwd=home,
            stdout=(home / "server.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def await_ready(self) -> PrefectServer:
        import httpx

        def answers() -> bool:
            assert self._process.poll() is None, (self.home / "server.log").read_text()
            with suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/health", timeout=2).is_success
            return False

        until(answers, READY_SECONDS, "the Prefect server answers")
        return self

    def kill(self) -> None:
        """End it as a crash would; nothing of it is left."""
        end_tree(self._process.pid)
        self._process.wait()

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of this server, in this process."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

        with (
            temporary_settings({PREFECT_API_URL: self.url, PREFECT_HOME: self.home}),
            get_client(sync_client=True) as client,
        ):
            yield client


class RunProject(Project):
    """A project that `kdci` is run in, with servers and stores of its own."""

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a command: nothing of the caller's servers, nothing beyond."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {
            **inherited,
            "PATH": path,
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(self.root.parent / f"{self.root.name}-prefect"),
            **more,
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kdci(
        self, *arguments: str, timeout: float = TIMEOUT, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; one that hangs is killed with all that it started."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            end_tree(process.pid)
            out, err = process.communicate()
            pytest.fail(f"kdci {' '.join(arguments)} hangs:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_through(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `kdci run` and require that it ends well."""
        done = self.kdci("run", *arguments, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def journal(self) -> list[Execution]:
        return read(self.layout)

    def ran(self, *, since: int = 0) -> dict[str, str]:
        """Return what became of the stages that were run, from the journal's line ``since`` on."""
        return {entry.stage: entry.outcome for entry in self.journal()[since:]}

    def contents(self) -> dict[str, str]:
        """Return the content hash of every artifact: what it holds, without wall times."""
        return {
            str(card.relative_to(self.root)): str(json.loads(card.read_text())["content"])
            for card in sorted((self.root / "artifacts").rglob("card.json"))
        }

    def stages_alive(self) -> list[psutil.Process]:
        """Return live processes that work in this project on a stage, DVC included."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                ours = "stages." in command or "pipelines.running.dvc_process" in command
                if ours and Path(process.cwd()) == self.root:
                    found.append(process)
        return found

    def await_stage(self, name: str) -> None:
        """Wait until a stage is in its loop: it writes metrics of some steps from now on."""
        now = time.time()

        def writes() -> bool:
            files = [file.stat() for file in self.root.glob(f".kdci/work/{name}/*/metrics.jsonl")]
            return any(file.st_size and file.st_mtime > now for file in files)

        until(writes, TIMEOUT, f"{name} is at work")

    def copy(self, root: Path) -> RunProject:
        shutil.copytree(self.root, root, symlinks=True)
        return RunProject(root)


def warnings_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("kdci: warning:")]


def finish(process: subprocess.Popen[str], seconds: float = TIMEOUT) -> tuple[int, str, str]:
    """Return the exit code and output of a command that is to end by itself."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)
        out, err = process.communicate()
        pytest.fail(f"it hangs:\n{out}\n{err}")
    return process.returncode, out, err


def blank_project(root: Path, smoke: Project) -> RunProject:
    """Return the digits-smoke project before anything ran."""
    root.mkdir(parents=True)
    for folder in ("kdci", "stages", "pipelines", ".dvc"):
        skip = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        shutil.copytree(smoke.root / folder, root / folder, ignore=skip)
    for file in ("dvc.yaml", ".dvcignore", "params.yaml"):
        shutil.copy(smoke.root / file, root)
    return RunProject(root)


def recorded_project(root: Path, smoke: Project) -> RunProject:
    """Return the digits-smoke project with all stages run and recorded in DVC."""
    shutil.copytree(smoke.root, root, ignore=shutil.ignore_patterns("__pycache__"))
    project = RunProject(root)
    subprocess.run(
        ["dvc", "commit", "--force", "--quiet"],
        cwd=root,
        env=project.environment(DVC_NO_ANALYTICS="1"),
        check=True,
        timeout=TIMEOUT,
    )
    return project
