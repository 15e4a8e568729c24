"""``python -m pipelines.sweeping.run_cache STAGE ...``: which results DVC's run cache has.

In a process of its own: DVC looks for a cached result's files from the working folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.flow.telemetry import switch_off


def restorable(root: Path, names: Sequence[str]) -> list[str]:
    """Return the stages whose result, as they are now, DVC's run cache has.

    A cache that can not be asked has none: the stages are run then.

    Args:
        root: The project folder.
        names: Stages; all that they are made from is up to date.
    """
    if not names:
        return []
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.sweeping.run_cache", *names],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return []
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(names: Sequence[str]) -> int:
    """Write the names of those whose result is there, as a JSON list."""
    switch_off()
    sys.stdout.write(json.dumps(list(_look_up(names))) + "\n")
    return 0


def _look_up(names: Iterable[str]) -> Iterator[str]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    wanted = set(names)
    with Repo(_wait_for_lock=True) as repo, repo.lock:
        for stage in repo.index.stages:
            if getattr(stage, "name", None) not in wanted:
                continue
            try:
                # The private half of StageCache.restore, whose other half restores it.
                stage.save_deps()
                entry = repo.stage_cache._load(stage)
                if entry and repo.stage_cache._create_stage(entry, wdir=stage.wdir).outs_cached():
                    yield stage.name
            except DvcException:
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
