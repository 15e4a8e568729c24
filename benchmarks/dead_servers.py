"""What servers that die cost a running student: ``python -m benchmarks.dead_servers``.

The same student (new seed each time) is distilled by `kdci run` three ways, in turn: with no
server at all, beside a Prefect and an MLflow server, and beside servers that are killed once a
quarter of its steps is done. What is compared is the time of its training loop, and the wall time
of the command, which also holds the start of everything and what is waited for at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.compensation_cost import environment
from kdci.store.metrics import read_metrics
from kdci.training.runtime import start
from pipelines.flow.telemetry import SWITCHES
from pipelines.params.edit import with_values
from pipelines.params.presets import preset_text

ROOT = Path(__file__).resolve().parents[1]
KEY = "dead_servers"
WAYS = ("no servers", "servers alive", "servers killed")
PAIR = "wrn-16-1-wrn-10-1"
READY_SECONDS = 120.0


def make_project(root: Path, *, num_epochs: int) -> None:
    """Make a DVC project of `digits` with one method and a student of ``num_epochs`` epochs."""
    for name in ("kdci", "stages", "pipelines"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "dvc.yaml", root)
    values = {
        "grid.methods": ["fast"],
        "grid.controls": [],
        "grid.seeds": [0],
        "runtime.threads": 1,
        "recipes.fast.num_epochs": num_epochs,
    }
    text = with_values(preset_text("digits"), values)
    (root / "params.yaml").write_text(text, encoding="utf-8")
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=root, check=True)


def distil(root: Path, seed: int, env: dict[str, str], during: Callable[[], None]) -> float:
    """Distil the student of ``seed`` and return the command's wall seconds."""
    stage = f"distill@{PAIR}-fast-vanilla-0-{seed}"
    command = [sys.executable, "-m", "pipelines.cli", "run", stage, "--seeds", str(seed)]
    if "PREFECT_API_URL" not in env:
        command += ["--no-prefect"]
    began = time.monotonic()
    with (root / "run.log").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log)
        during()
        if process.wait() != 0:
            raise SystemExit((root / "run.log").read_text(encoding="utf-8"))
    return time.monotonic() - began


def loop_seconds(root: Path, seed: int) -> float:
    """Return the seconds of a student's training loop."""
    place = "artifacts/digits/timings/students/wrn-16-1/wrn-10-1/fast/vanilla"
    timing = root / place / f"pool0-seed{seed}.json"
    return float(json.loads(timing.read_text(encoding="utf-8"))["loop_seconds"])


def await_epochs(root: Path, seed: int, num_epochs: int) -> None:
    """Wait until a student has done ``num_epochs`` epochs."""
    work = root / ".kdci" / "work" / f"distill@{PAIR}-fast-vanilla-0-{seed}"
    while not any(len(read_metrics(file)) >= num_epochs for file in work.glob("*/metrics.jsonl")):
        time.sleep(0.2)


@contextmanager
def servers(folder: Path) -> Iterator[tuple[dict[str, str], Callable[[], None]]]:
    """Serve Prefect and MLflow on loopback; yield how to find them, and how to kill them."""
    folder.mkdir(parents=True)
    prefect, mlflow = _free_port(), _free_port()
    env = {**os.environ, **SWITCHES, "PREFECT_HOME": str(folder)}
    store = f"sqlite:///{folder}/mlflow.db"
    commands = [
        ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect)],
        ["mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow)]
        + ["--backend-store-uri", store, "--artifacts-destination", str(folder / "mlruns")],
    ]
    with (folder / "log").open("w") as log:
        running = [
            subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
            for command in commands
        ]

    def kill() -> None:
        for process in running:
            _kill_tree(process.pid)

    try:
        _await_answer(f"http://127.0.0.1:{prefect}/api/health")
        _await_answer(f"http://127.0.0.1:{mlflow}/health")
        found = {
            "PREFECT_HOME": str(folder),
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        }
        yield found, kill
    finally:
        kill()
        for process in running:
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_answer(url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        time.sleep(0.3)
    raise SystemExit(f"{url} does not answer")


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def measure(root: Path, *, repeats: int, num_epochs: int) -> dict[str, Any]:
    """Return the seconds of each way, and the ratios of their medians to `no servers`."""
    make_project(root, num_epochs=num_epochs)
    plain = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        plain.pop(name, None)
    loops: dict[str, list[float]] = {way: [] for way in WAYS}
    walls: dict[str, list[float]] = {way: [] for way in WAYS}
    distil(root, 1000, plain, lambda: None)  # teacher and pool, and everything read once
    seed = 0
    for repeat in range(repeats):
        for way in WAYS if repeat % 2 == 0 else reversed(WAYS):
            seed += 1
            if way == "no servers":
                wall = distil(root, seed, plain, lambda: None)
            else:
                with servers(root / "servers" / str(seed)) as (found, kill):
                    wall = distil(
                        root, seed, {**plain, **found}, _during(way, root, seed, num_epochs, kill)
                    )
            walls[way].append(wall)
            loops[way].append(loop_seconds(root, seed))
    median = {way: statistics.median(values) for way, values in loops.items()}
    return {
        "student": f"digits, Fast, {PAIR}, {num_epochs} epochs of 50 steps of batch 64",
        "repeats": repeats,
        "loop_seconds": loops,
        "wall_seconds": walls,
        "loop_ratio": {way: median[way] / median["no servers"] for way in WAYS},
    }


def _during(
    way: str, root: Path, seed: int, num_epochs: int, kill: Callable[[], None]
) -> Callable[[], None]:
    if way != "servers killed":
        return lambda: None

    def wait_and_kill() -> None:
        await_epochs(root, seed, max(1, num_epochs // 4))
        kill()

    return wait_and_kill


def table(result: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = [f"{result['student']}; {result['hardware']}, threads {result['threads']}"]
    lines += [f"{'':<16}{'loop, s (median)':>18}{'ratio':>8}{'command, s':>12}"]
    for way in WAYS:
        loop, wall = (
            statistics.median(result[key][way]) for key in ("loop_seconds", "wall_seconds")
        )
        lines.append(f"{way:<16}{loop:>18.1f}{result['loop_ratio'][way]:>8.3f}{wall:>12.1f}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description="What servers that die cost a student.")
    parser.add_argument("--repeats", type=int, default=3, help="students each way")
    parser.add_argument("--num-epochs", type=int, default=40, help="length of a student")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(
            Path(folder).resolve(), repeats=options.repeats, num_epochs=options.num_epochs
        )
    result = {**environment(start(device="cpu", threads=1, precision="auto")), **measured}
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    text = json.dumps({**results, KEY: result}, indent=2) + "\n"
    options.out.write_text(text, encoding="utf-8")
    sys.stdout.write(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
