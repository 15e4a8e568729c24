"""A project folder that has this checkout's code, for what runs `dvc` or stages in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from kdci.config.params_file import load_params
from kdci.graph.build import graph_of
from kdci.graph.cells import renew_cells

ROOT = Path(__file__).resolve().parents[1]


def copy_code(root: Path) -> None:
    """Copy the packages, dvc.yaml and DVC's settings into a folder, which may be missing."""
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("kdci", "stages", "pipelines"):
        shutil.copytree(ROOT / folder, root / folder, ignore=skip)
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, root)
    (root / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", root / ".dvc")


def without_git(root: Path) -> None:
    """Have DVC do without a git repository in a folder with ``copy_code``."""
    (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")


def copy_smoke(root: Path) -> None:
    """Copy the code, and the params of digits-smoke, into a folder without git."""
    copy_code(root)
    without_git(root)
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", root / "params.yaml")
    renew_cells_of(root)


def renew_cells_of(root: Path) -> None:
    """Write the cells.yaml that a project's params.yaml and code ask for."""
    renew_cells(graph_of(load_params(root / "params.yaml"), root))
