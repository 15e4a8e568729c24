"""Which code is at work: the commit of a checkout, or the version that is installed."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kdci


def code_revision() -> str:
    """Return the commit of kdci's own checkout, with `+dirty` if it was edited since.

    An installed package, which no commit tells of even where it lies in a checkout of something
    else, is told by its version: `kdci 0.1.0`; `unknown` where that fails too.
    """
    root = Path(kdci.__file__).resolve().parents[1]
    code = ("kdci", "stages", "pipelines")
    try:
        _git(root, "ls-files", "--error-unmatch", "kdci/__init__.py")
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        with suppress(PackageNotFoundError):
            return f"kdci {version('kdci')}"
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()
