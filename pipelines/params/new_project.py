"""`kdci init`: an experiment in a folder of its own, from the installed package.

The same dvc.yaml serves a checkout of kdci and an experiment anywhere: stages are modules of the
package, and cells.yaml says which cells there are and what their code is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from kdci.errors import StorageError, UserError
from kdci.store.artifacts import replace_file, storage_errors
from pipelines.graph.current import current_graph
from pipelines.params.edit import write_preset
from pipelines.params.schema import place_of, write_schema

SHIPPED = Path(__file__).parents[1] / "project"
"""Files of a new project, by names that no tool takes for its own there."""
FILES = {
    "pipeline.yaml": "dvc.yaml",
    "dvcignore": ".dvcignore",
    "gitignore": ".gitignore",
    "curves_by_arm.json": ".dvc/plots/curves_by_arm.json",
}
DVC_CONFIG = "dvc-config"


def new_project(root: Path, *, preset: str, data: str | None = None) -> list[str]:
    """Make an experiment of a preset; Git and DVC are initialised where they are not.

    Args:
        root: Its folder, which may be there as long as it holds no experiment.
        preset: Name of the preset.
        data: Folder to read the data from; None: as the preset says.

    Returns:
        What was made, to be told.

    Raises:
        UserError: There is an experiment already, or no such preset.
        StorageError: The folder can not be written, or Git or DVC fails.
    """
    root = root.absolute()
    _require_room(root)
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    write_preset(preset, root / "params.yaml", data=data)
    write_schema(place_of(root))
    try:
        told = [f"params.yaml: preset {preset}"]
        told += [*_git(root), *_dvc(root)]
        for source, name in FILES.items():
            if not (root / name).exists():
                replace_file(root / name, (SHIPPED / source).read_bytes())
                told.append(name)
        current_graph(root)
    except BaseException:
        with suppress(OSError):  # else a second try would meet half an experiment
            (root / "params.yaml").unlink()
            (root / "dvc.yaml").unlink()
        raise
    return [*told, "cells.yaml: what dvc.yaml runs"]


def _require_room(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(str(root), "is no folder", "choose another place")
    for name in ("params.yaml", "dvc.yaml"):
        if (root / name).exists():
            what = f"holds a {name} already"
            raise UserError(str(root), what, "choose another folder, or `kdci preset` in this one")


def _git(root: Path) -> list[str]:
    """Make a repository, unless the folder lies in one or there is no Git."""
    if shutil.which("git") is None or _top(root) is not None:
        return []
    _run(root, "git", "init", "--quiet")
    return ["a Git repository"]


def _top(root: Path) -> Path | None:
    """Return the top of the Git repository that a folder lies in; None: it lies in none."""
    ask = ["git", "rev-parse", "--show-toplevel"]
    try:
        done = subprocess.run(ask, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return Path(done.stdout.strip())


def _dvc(root: Path) -> list[str]:
    """Make the folder a DVC project, unless it is one: below a repository's top one of its own."""
    if (root / ".dvc").is_dir():
        return []
    top = _top(root)
    below = top is not None and top.resolve() != root.resolve()
    options = ["--no-scm"] if top is None else ["--subdir"] if below else []
    _run(root, sys.executable, "-m", "dvc", "init", "--quiet", *options)
    config = root / ".dvc" / "config"
    text = (SHIPPED / DVC_CONFIG).read_text(encoding="utf-8")
    # What DVC wrote itself, as no_scm, stays.
    replace_file(config, _merged(config.read_text(encoding="utf-8"), text).encode())
    return ["a DVC project"]


def _merged(own: str, shipped: str) -> str:
    lines = [line for line in own.splitlines() if line.strip() and line.strip() != "[core]"]
    return "\n".join([shipped.rstrip(), *lines]) + "\n"


def _run(root: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        what = f"`{' '.join(Path(word).name for word in command)}` failed: {said}"
        raise StorageError(str(root), what, "mend that and try again")
