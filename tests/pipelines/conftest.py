"""A DVC project of the pipeline's shape whose stages take no time: for what is asked of DVC."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdci.store.layout import Layout
from tests.conftest import Project
from tests.pipelines import _servers

TWO_NODES = Path(__file__).parent / "sweeping/two_nodes.py"

STAGE = '''
"""Writes what its params and inputs come to; `note` counts for nothing. Claims to take time."""
import hashlib, json, sys
from pathlib import Path
from time import time

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
params = json.loads(Path("params.yaml").read_text())
blocks = [params[k][arguments["--method"]] if "--method" in arguments else params[k] for k in KEYS]
kept = [{k: v for k, v in block.items() if k != "note"} for block in blocks]
name = "/".join(arguments.values()) or "all"
texts = [Path(place.format(*arguments.values())) for place in INPUTS]
texts = [f for t in texts for f in sorted(t.rglob("*.txt"))]
code = [line for line in Path(__file__).read_text().splitlines() if not line.startswith("#")]
content = json.dumps([kept, [t.read_text() for t in texts], code])
out = Path("artifacts/tiny", FOLDER, name)
out.mkdir(parents=True, exist_ok=True)
(out / "value.txt").write_text(hashlib.sha256(content.encode()).hexdigest())
steps = 1
for block in kept:
    for key in ("num_epochs", "steps_per_epoch", "warmup_calls", "num_steps"):
        steps *= block.get(key, 1)
times = {"started": time(), "finished": time(), "seconds": 2 + steps / 2, "loop_seconds": steps / 2}
file = Path("artifacts/tiny/timings", FOLDER, name + ".json")
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps(times))
'''

STAGES: dict[str, tuple[list[str], list[str], str]] = {
    "teacher": (["teacher"], [], "teachers"),
    "substitute": (["methods"], ["artifacts/tiny/teachers"], "pools"),
    "distill": (["recipes"], ["artifacts/tiny/pools/{0}"], "students"),
    "report": (["grid"], ["artifacts/tiny/students"], "reports"),
}

DVC_YAML = """
stages:
  teacher:
    cmd: python -m stages.teacher
    deps: [stages/teacher.py]
    params: [teacher]
    outs: [artifacts/tiny/teachers/all, artifacts/tiny/timings/teachers/all.json]
  substitute:
    matrix: {method: "${grid.methods}"}
    cmd: python -m stages.substitute --method ${item.method}
    deps: [stages/substitute.py, artifacts/tiny/teachers/all]
    params: ["methods.${item.method}"]
    outs:
    - artifacts/tiny/pools/${item.method}
    - artifacts/tiny/timings/pools/${item.method}.json
  distill:
    matrix: {method: "${grid.methods}", seed: "${grid.seeds}"}
    cmd: python -m stages.distill --method ${item.method} --seed ${item.seed}
    deps: [stages/distill.py, "artifacts/tiny/pools/${item.method}"]
    params: ["recipes.${item.method}"]
    outs:
    - artifacts/tiny/students/${item.method}/${item.seed}
    - artifacts/tiny/timings/students/${item.method}/${item.seed}.json
  report:
    cmd: python -m stages.report
    deps: [stages/report.py, artifacts/tiny/students]
    params: [grid]
    outs: [artifacts/tiny/reports/all]
"""

PARAMS: dict[str, Any] = {
    "preset": "tiny",
    "grid": {"methods": ["fast", "dfnd"], "seeds": [0, 1]},
    "teacher": {"num_epochs": 4},
    "methods": {
        "fast": {"warmup_calls": 2, "num_steps": 3, "note": "a"},
        "dfnd": {"num_selected": 5, "note": "a"},
    },
    "recipes": {
        "fast": {"num_epochs": 2, "steps_per_epoch": 6},
        "dfnd": {"num_epochs": 1, "steps_per_epoch": 6},
    },
}


@dataclass(frozen=True)
class TinyProject:
    """A DVC project with a teacher, two pools, four students and a report."""

    root: Path
    environment: Mapping[str, str]

    @property
    def layout(self) -> Layout:
        return Layout(self.root, "tiny")

    def dvc(self, *arguments: str) -> str:
        done = subprocess.run(
            ["dvc", *arguments],
            cwd=self.root,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def repro(self, *arguments: str) -> tuple[set[str], set[str]]:
        """Run `dvc repro`; return the stages that ran, and those taken from the run cache."""
        said = self.dvc("repro", *arguments)
        restored = re.findall(r"Stage '(\S+)' is cached - skipping run", said)
        return set(re.findall(r"Running stage '(\S+)'", said)), set(restored)

    def edit(self, key: str, value: Any) -> None:
        """Set a dotted key of params.yaml."""
        file = self.root / "params.yaml"
        tree = json.loads(file.read_text())
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
        file.write_text(json.dumps(tree, indent=1))


def write_tiny(root: Path, environment: Mapping[str, str]) -> TinyProject:
    (root / "stages").mkdir(parents=True)
    (root / "stages" / "__init__.py").touch()
    for name, (keys, inputs, folder) in STAGES.items():
        head = f"KEYS, INPUTS, FOLDER = {keys!r}, {inputs!r}, {folder!r}\n"
        (root / "stages" / f"{name}.py").write_text(head + STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(json.dumps(PARAMS, indent=1))
    tiny = TinyProject(root, environment)
    tiny.dvc("init", "--no-scm", "--quiet")
    return tiny


@pytest.fixture(scope="session")
def tiny_made(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    """The tiny project, run once. Shared: tests change copies (``tiny``) only."""
    tiny = write_tiny(tmp_path_factory.mktemp("tiny") / "made", environment)
    ran, _ = tiny.repro()
    assert len(ran) == 8
    return tiny


@pytest.fixture
def tiny(tiny_made: TinyProject, tmp_path: Path) -> TinyProject:
    root = tmp_path / "tiny"
    shutil.copytree(tiny_made.root, root)
    return TinyProject(root, tiny_made.environment)


# -- for `kdci run` --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run_recorded(
    smoke_project: Project, tmp_path_factory: pytest.TempPathFactory
) -> _servers.RunProject:
    """The digits-smoke project, all of it up to date in DVC. Shared: tests change copies only."""
    return _servers.recorded_project(tmp_path_factory.mktemp("recorded") / "shared", smoke_project)


@pytest.fixture
def up_to_date(run_recorded: _servers.RunProject, tmp_path: Path) -> _servers.RunProject:
    return run_recorded.copy(tmp_path / "project")


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[_servers.PrefectServer]:
    """A Prefect server for all tests; one that is to be killed is a test's own."""
    server = _servers.PrefectServer(tmp_path_factory.mktemp("prefect-server"))
    try:
        yield server.await_ready()
    finally:
        server.kill()


# -- for what runs on Ray --------------------------------------------------------------------------


@pytest.fixture
def two_ray_nodes() -> Iterator[tuple[str, str]]:
    """A Ray cluster of two nodes, a core each: its address and token."""
    token = secrets.token_hex(32)
    switches = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "RAY_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    # Not below tmp_path: the paths of Ray's sockets may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="kdci-two-", dir="/tmp") as folder:
        process = subprocess.Popen(
            [sys.executable, str(TWO_NODES)],
            env={**kept, **switches, "RAY_TMPDIR": folder, "PATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None and process.stdin is not None
            address = process.stdout.readline().strip()
            assert address, "no cluster"
            yield address, token
            process.stdin.close()
            process.wait(timeout=60)
        finally:
            _servers.end_tree(process.pid)
            process.wait()
