"""Which code made a result."""

from __future__ import annotations

import subprocess
from pathlib import Path

from kdci.store.hashing import hash_file, hash_json


def git_revision(root: Path) -> str:
    """Return the commit the code is at, with `+dirty` if it was edited since; or `unknown`."""
    code = ("kdci", "stages", "pipelines")
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(root, "status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def code_hash() -> str:
    """Return a hash of the sources of the library and of all stages, for naming work folders."""
    import kdci

    sources = [
        *sorted(Path(kdci.__file__).parent.rglob("*.py")),
        *sorted(Path(__file__).parent.glob("*.py")),
    ]
    return hash_json([[file.name, hash_file(file)] for file in sources])
