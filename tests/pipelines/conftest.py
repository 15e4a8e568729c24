"""A DVC project of the pipeline's shape whose stages take no time: for what is asked of DVC."""

from __future__ import annotations

import hashlib
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
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from kdci.graph.cells import CELLS_STAGE
from kdci.store.layout import Layout
from pipelines.explaining.tasks import Task
from tests.conftest import Project
from tests.pipelines import _servers

TWO_NODES = Path(__file__).parent / "sweeping/two_nodes.py"

STAGE = '''
"""Writes what its params and inputs come to; `note` counts for nothing. Claims to take time."""
import hashlib, json, sys
from pathlib import Path
from time import time

place = sys.argv[1] if sys.argv[1:] else "all"
point = json.loads(Path("cells.yaml").read_text())["cells"].get(NAME, {}).get(place, {})
params = json.loads(Path("params.yaml").read_text())
blocks = [params[k][point["method"]] if "method" in point else params[k] for k in KEYS]
kept = [{k: v for k, v in block.items() if k != "note"} for block in blocks]
texts = [Path(text.format(**point)) for text in INPUTS]
texts = [f for t in texts for f in sorted(t.rglob("*.txt"))]
code = [line for line in Path(__file__).read_text().splitlines() if not line.startswith("#")]
content = json.dumps([kept, [t.read_text() for t in texts], code])
out = Path("artifacts/tiny", FOLDER, place)
out.mkdir(parents=True, exist_ok=True)
(out / "value.txt").write_text(hashlib.sha256(content.encode()).hexdigest())
steps = 1
for block in kept:
    for key in ("num_epochs", "steps_per_epoch", "warmup_calls", "num_steps"):
        steps *= block.get(key, 1)
times = {"stage": NAME, "point": point, "started": time(), "finished": time()}
times |= {"seconds": 2 + steps / 2, "loop_seconds": steps / 2}
file = Path("artifacts/tiny/timings", FOLDER, place + ".json")
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text(json.dumps(times))
'''

STAGES: dict[str, tuple[list[str], list[str], str]] = {
    "teacher": (["teacher"], [], "teachers"),
    "substitute": (["methods"], ["artifacts/tiny/teachers"], "pools"),
    "distill": (["recipes"], ["artifacts/tiny/pools/{method}"], "students"),
    "report": (["grid"], ["artifacts/tiny/students"], "reports"),
}

DVC_YAML = """
vars: [cells.yaml]
stages:
  teacher:
    cmd: python -m stages.teacher
    deps: [stages/teacher.py]
    params: [teacher]
    outs: [artifacts/tiny/teachers/all, artifacts/tiny/timings/teachers/all.json]
  substitute:
    foreach: ${cells.substitute}
    do:
      cmd: python -m stages.substitute ${key}
      deps: [artifacts/tiny/teachers/all]
      params: ["methods.${item.method}", {cells.yaml: [code.substitute]}]
      outs:
      - artifacts/tiny/pools/${key}
      - artifacts/tiny/timings/pools/${key}.json
  distill:
    foreach: ${cells.distill}
    do:
      cmd: python -m stages.distill ${key}
      deps: ["artifacts/tiny/pools/${item.method}"]
      params: ["recipes.${item.method}", {cells.yaml: [code.distill]}]
      outs:
      - artifacts/tiny/students/${key}
      - artifacts/tiny/timings/students/${key}.json
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
        """Run `dvc repro`; return the stages that ran, and those taken from the run cache.

        The look at cells.yaml, which comes first and always, is left out.
        """
        said = self.dvc("repro", *arguments)
        restored = re.findall(r"Stage '(\S+)' is cached - skipping run", said)
        return set(re.findall(r"Running stage '(\S+)'", said)) - {CELLS_STAGE}, set(restored)

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
        self.renew_cells()

    def append(self, name: str, text: str) -> None:
        """Add to a file of the project."""
        with (self.root / name).open("a") as file:
            file.write(text)
        self.renew_cells()

    def renew_cells(self) -> None:
        """Write cells.yaml as params.yaml and the code want it."""
        grid = json.loads((self.root / "params.yaml").read_text())["grid"]
        points = list(product(grid["methods"], map(str, grid["seeds"])))
        cells = {
            "substitute": {method: {"method": method} for method in grid["methods"]},
            "distill": {f"{m}-{seed}": {"method": m, "seed": seed} for m, seed in points},
        }
        files = {name: self.root / f"stages/{name}.py" for name in cells}
        code = {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in files.items()}
        text = json.dumps({"code": code, "cells": cells}, indent=1)
        (self.root / "cells.yaml").write_text(text)

    @property
    def tasks(self) -> dict[str, Task]:
        """What its stages work on, by name."""
        cells = json.loads((self.root / "cells.yaml").read_text())["cells"]
        of_cells = {
            f"{stage}@{key}": Task(stage, point)
            for stage, points in cells.items()
            for key, point in points.items()
        }
        return {"teacher": Task("teacher", {}), **of_cells, "report": Task("report", {})}


def write_tiny(root: Path, environment: Mapping[str, str]) -> TinyProject:
    (root / "stages").mkdir(parents=True)
    (root / "stages" / "__init__.py").touch()
    for name, (keys, inputs, folder) in STAGES.items():
        head = f"NAME, KEYS, INPUTS, FOLDER = {name!r}, {keys!r}, {inputs!r}, {folder!r}\n"
        (root / "stages" / f"{name}.py").write_text(head + STAGE)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(json.dumps(PARAMS, indent=1))
    tiny = TinyProject(root, environment)
    tiny.renew_cells()
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
