"""A project with every stage built once, and ways to run stages, whole or killed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from ruamel.yaml import YAML

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.deconfounding.arms import ARMS
from kdci.graph.build import Graph, graph_of
from kdci.graph.node import Node
from kdci.store.layout import Cell, Layout, cells
from tests.project_code import ROOT, copy_smoke

WRN = "wrn-10-1"


@dataclass(frozen=True)
class Call:
    """One stage of one cell, as dvc.yaml calls it."""

    stage: str
    cell: str = ""

    @classmethod
    def of(cls, stage: str, method: str = "fast", seed: int = 0) -> Call:
        """Return a call for the smoke grid's one teacher and one student.

        Args:
            stage: Its name; or an arm, for the student of that arm.
            method: Of the pool.
            seed: Of the student.
        """
        if stage in ARMS:
            return cls("distill", f"{WRN}-{WRN}-{method}-{stage}-0-{seed}")
        cells = {"teacher": WRN, "evaluate": f"{WRN}-{WRN}-{method}", "report": ""}
        return cls(stage, cells.get(stage, f"{WRN}-{method}-0"))

    @property
    def name(self) -> str:
        return f"{self.stage}@{self.cell}" if self.cell else self.stage

    @property
    def arguments(self) -> list[str]:
        return [self.cell] if self.cell else []


@dataclass(frozen=True)
class Project:
    """A project folder: params.yaml, artifacts, a report."""

    root: Path

    @property
    def params(self) -> Params:
        return load_params(self.root / "params.yaml")

    @property
    def layout(self) -> Layout:
        return Layout(self.root, self.params.preset)

    def edit(self, **values: Any) -> Project:
        """Set dotted params keys, spelt with a double underscore for the dot."""
        file = self.root / "params.yaml"
        tree = YAML(typ="safe", pure=True).load(file.read_text())
        for key, value in values.items():
            *path, last = key.split("__")
            node = tree
            for part in path:
                node = node[part]
            node[last] = value
        with file.open("w") as out:
            YAML(typ="safe", pure=True).dump(tree, out)
        return self

    @property
    def graph(self) -> Graph:
        return graph_of(self.params, self.root)

    def node(self, call: Call) -> Node:
        return self.graph.node(call.stage, call.cell)

    def calls(self) -> list[Call]:
        """Return every stage of the grid, parents first."""
        return [Call(node.stage, node.cell) for node in self.graph.nodes.values()]

    def run(self, call: Call, *arguments: str) -> int:
        """Run a stage in this process and return its exit code."""
        from stages import main as stage_main

        argv = ["--params", str(self.root / "params.yaml"), *call.arguments, *arguments]
        numbers = (signal.SIGTERM, signal.SIGINT)
        handlers = [signal.getsignal(number) for number in numbers]
        try:
            with mock.patch.object(stage_main, "die_with_parent"):  # pytest may outlive its shell
                return stage_main.main(call.stage, stage_function(call.stage), argv)
        finally:
            for number, handler in zip(numbers, handlers, strict=True):
                signal.signal(number, handler)

    def build(self, *calls: Call) -> Project:
        """Run stages, all of the grid's by default, and require that they succeed."""
        for call in calls or self.calls():
            assert self.run(call) == 0, call.name
        return self

    def artifact(self, call: Call) -> Path:
        """Return where a stage's result lies."""
        return self.node(call).artifact

    def card(self, call: Call) -> dict[str, Any]:
        return json.loads((self.artifact(call) / "card.json").read_text())

    def content(self, call: Call) -> str:
        """Return the content hash of a stage's result; wall times are not in it."""
        path = self.artifact(call)
        if call.stage != "report":
            return str(self.card(call)["content"])
        return json.dumps(tree_hashes(path), sort_keys=True)

    def files(self) -> dict[str, str]:
        """Return the hashes of all results: everything but locks and unfinished work."""
        return {name: h for name, h in tree_hashes(self.root).items() if ".kdci" not in name}

    def leftovers(self) -> list[str]:
        """Return temporary files and work folders that nobody will use again."""
        found = [path for path in self.root.rglob("*") if path.name.endswith(".tmp")]
        found += self.root.glob(".kdci/work/*/*")
        return sorted(str(path.relative_to(self.root)) for path in found)

    def cell(self, variant: str = "kdci", method: str = "fast") -> Cell:
        return next(
            c for c in cells(self.params.grid) if (c.variant, c.method) == (variant, method)
        )


def stage_function(stage: str) -> Callable[[Any], None]:
    """Return what a stage's module runs."""
    return importlib.import_module(f"stages.{stage}").run  # type: ignore[no-any-return]


def tree_hashes(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``root``."""
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def _python_first() -> dict[str, str]:
    """Return an environment whose `python` and `dvc` are those of the running interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return _python_first()


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The digits-smoke experiment, built. Shared: tests change copies (``built``) only."""
    root = tmp_path_factory.mktemp("smoke")
    copy_smoke(root)
    return Project(root).build()


@pytest.fixture
def built(smoke_project: Project, tmp_path: Path) -> Project:
    """A copy of the built experiment's params, artifacts and report."""
    root = tmp_path / "built"
    for name in ("artifacts", "report"):
        shutil.copytree(smoke_project.root / name, root / name)
    shutil.copy(smoke_project.root / "params.yaml", root)
    return Project(root)


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    """The digits-smoke experiment before any stage ran."""
    root = tmp_path / "fresh"
    root.mkdir()
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", root / "params.yaml")
    return Project(root)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Take back what a stage in this process has set before.

    Two workers with two threads each on two cores are several times slower than with one each.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def call() -> Callable[..., Call]:
    return Call.of


class Forks:
    """A process that has torch and all stages loaded and forks a child for every run."""

    def __init__(self) -> None:
        script = ROOT / "tests/stages/fork_stages.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_python_first(),
            cwd=ROOT,
        )

    def _ask(self, order: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    def start(
        self,
        project: Project,
        call: Call,
        *,
        faults: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> int:
        """Start a stage in a child and return its process id.

        Args:
            project: Where.
            call: Which.
            faults: What goes wrong, see fork_stages.py.
            settings: ``checkpoint_seconds``, ``lock_seconds``, ``max_file_bytes``, ``parent``.
        """
        params = str(project.root / "params.yaml")
        order = {
            "stage": call.stage,
            "argv": ["--params", params, *call.arguments],
            "faults": list(faults),
            "stderr": str(project.root.parent / "stderr.txt"),
            **settings,
        }
        return int(self._ask({"start": order})["pid"])

    def wait(self, pid: int) -> int:
        """Return the exit code of a child; minus the signal that ended it."""
        return int(self._ask({"wait": pid})["code"])

    def run(self, project: Project, call: Call, **settings: Any) -> int:
        return self.wait(self.start(project, call, **settings))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()
