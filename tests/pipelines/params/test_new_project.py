"""`kdci init`: an experiment anywhere, from the installed package as from a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from kdci.errors import UserError
from kdci.graph.cells import renew_cells
from pipelines.cli import run
from pipelines.params.new_project import new_project
from tests.conftest import Project
from tests.project_code import ROOT

MADE = {"params.yaml", "dvc.yaml", "cells.yaml", ".gitignore", ".dvcignore", ".dvc"}


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def test_an_empty_folder_becomes_an_experiment(tmp_path: Path, capsys) -> None:
    root = tmp_path / "deep/folder"
    assert run(["init", str(root), "--preset", "digits-smoke"]) == 0
    assert "kdci run" in capsys.readouterr().out
    assert {path.name for path in root.iterdir()} >= {*MADE, ".git"}
    assert (root / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()
    assert not (root / "dvc.yaml").is_symlink()
    assert (root / ".dvc/plots/curves_by_arm.json").is_file()
    assert "analytics = false" in (root / ".dvc/config").read_text()
    assert not renew_cells(Project(root).graph)
    for left in ("data/a.png", "teachers/x/card.json", "artifacts/y", "mlflow.db", ".kdci/z"):
        assert git(root, "check-ignore", left)
    with pytest.raises(subprocess.CalledProcessError):
        git(root, "check-ignore", "params.yaml")
    assert run(["--root", str(root), "check"]) == 0
    assert run(["init", str(root)]) == 2
    assert "holds a params.yaml already" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_folder_of_a_repository_it_takes_part_of_that(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    told = new_project(tmp_path / "a", preset="digits-smoke")
    new_project(tmp_path / "b", preset="digits-smoke")
    assert "a Git repository" not in told and not (tmp_path / "a/.git").exists()
    for name in ("a", "b"):
        assert (tmp_path / name / ".dvc/config").is_file()


def test_without_git_dvc_does_without(tmp_path: Path, monkeypatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "git" else real(name))
    new_project(tmp_path / "x", preset="digits-smoke")
    assert not (tmp_path / "x/.git").exists()
    assert "no_scm = true" in (tmp_path / "x/.dvc/config").read_text().lower()


def test_what_fails_leaves_no_half_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown preset"):
        new_project(tmp_path / "x", preset="digit")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder"):
        new_project(tmp_path / "file", preset="digits")
    new_project(tmp_path / "x", preset="digits-smoke")


@pytest.mark.slow
def test_the_wheel_runs_an_experiment_by_itself(tmp_path: Path) -> None:
    """Built, and installed where its dependencies are and nothing of this tree is."""
    source = tmp_path / "source"
    kept = ["kdci", "stages", "pipelines", "pyproject.toml", "README.md", "LICENSE", ".dvc/plots"]
    for name in [*kept, "dvc.yaml", ".dvcignore", ".dvc/config"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if copy is shutil.copytree else {}))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, *wheel, str(source)], check=True, timeout=300)
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env/lib").glob("python*/site-packages")
    (built,) = tmp_path.glob("kdci-*.whl")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(packages), built]
    subprocess.run([*pip, *map(str, install)], check=True, timeout=300)
    # The dependencies alone: a folder that is added has none of its own .pth files read.
    (theirs,) = (Path(p) for p in sys.path if p.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(f"{theirs}\n")
    shutil.rmtree(source)
    python = tmp_path / "env/bin/python"
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)

    def kdci(*arguments: str, at: Path = tmp_path) -> str:
        command = [str(python), "-m", "pipelines.cli", *arguments]
        done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    root = tmp_path / "experiment"
    kdci("init", str(root), "--preset", "digits-smoke")
    kdci("preset", "digits-smoke", at=root)
    assert "0 of" in kdci("check", at=root)
    assert "vanilla" in kdci("run", "--no-prefect", at=root)
    assert "digits-smoke" in kdci("show", at=root)
    dvc = [str(python), "-m", "dvc", "repro"]
    said = subprocess.run(dvc, cwd=root, env=environment, capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.count("Running stage") == 1, said.stdout
    card = (root / "artifacts/digits-smoke/teachers/wrn-10-1/card.json").read_text()
    assert '"revision": "kdci 0.1.0"' in card
