"""A project whose stages are up to date in DVC, with students that learn something."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project_code import copy_smoke, renew_cells_of

KNOWING = {
    "grid.methods": ["fast"],
    "teacher.num_epochs": 6,
    "methods.fast.warmup_calls": 8,
    "methods.fast.batch_size": 32,
    "methods.fast.num_steps": 3,
    "recipes.fast.num_epochs": 4,
    "recipes.fast.steps_per_epoch": 60,
    "recipes.fast.batch_size": 32,
    "distill.num_snapshots": 4,
    "pool.holdout": 0.3,
}
"""A teacher and a pool that know some classes, or all students would score alike."""


class Workspace:
    """A project folder that commands are run in."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = {**environment, "PYTHONPATH": str(root), "DVC_NO_ANALYTICS": "1"}

    def kdci(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return self._run([sys.executable, "-m", "pipelines.cli", *arguments], timeout)

    def dvc(self, *arguments: str) -> str:
        done = self._run(["dvc", *arguments], 240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def edit(self, **values: Any) -> None:
        """Set params; keys with a double underscore for the dot."""
        from pipelines.params.edit import with_values

        file = self.root / "params.yaml"
        dotted = {key.replace("__", "."): value for key, value in values.items()}
        file.write_text(with_values(file.read_text(), dotted))

    def _run(self, command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


@pytest.fixture(scope="session")
def reproduced(environment, tmp_path_factory) -> Workspace:
    """The project, reproduced by DVC. Shared: tests change copies only."""
    root = tmp_path_factory.mktemp("reproduced") / "project"
    root.mkdir()
    copy_smoke(root)
    workspace = Workspace(root, environment)
    workspace.edit(**{key.replace(".", "__"): value for key, value in KNOWING.items()})
    renew_cells_of(root)
    workspace.dvc("repro", "--quiet")
    return workspace


@pytest.fixture
def workspace(reproduced, tmp_path) -> Workspace:
    root = tmp_path / "project"
    shutil.copytree(reproduced.root, root)
    return Workspace(root, {k: v for k, v in reproduced.environment.items() if k != "PYTHONPATH"})
