"""A project in a folder of its own, and the commands that its user types there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.project_code import copy_code, without_git


def new_project(root: Path) -> Path:
    """Write the code, dvc.yaml and DVC's settings into ``root``; params.yaml is the caller's."""
    copy_code(root)
    without_git(root)
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
