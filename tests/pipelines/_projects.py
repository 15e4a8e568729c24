"""A project in a folder of its own, and the commands that its user types there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def new_project(root: Path) -> Path:
    """Write the code, dvc.yaml and DVC's settings into ``root``; params.yaml is the caller's."""
    root.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("kdci", "stages", "pipelines"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, root)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    return root


def run_in(root: Path, *command: str) -> str:
    """Run a command that has to succeed, and return all that it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}"
    return done.stdout
