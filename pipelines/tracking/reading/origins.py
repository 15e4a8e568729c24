"""Who made an artifact, as other tools know it: runners by the journal, DVC by its lock file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kdci.store.artifacts import CARD
from kdci.store.layout import Layout
from pipelines.running import journal
from pipelines.tracking.reading.files import Finished

RUNNER = "kdci.runner"
OUT_MD5 = "dvc.out_md5"
DEPS_MD5 = "dvc.deps_md5"


@dataclass(frozen=True)
class Origins:
    """What is known of who made the artifacts.

    Attributes:
        root: The project folder.
        executions: By the SHA-256 of a card: the execution that left it.
        locked: Entries of `dvc.lock` by stage.
    """

    root: Path = Path()
    executions: Mapping[str, journal.Execution] = field(default_factory=dict)
    locked: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def tags(self, finished: Finished, *, known: Mapping[str, str]) -> dict[str, str]:
        """Return the tags of an artifact's run, nothing where nothing is known.

        Args:
            finished: The artifact.
            known: Tags that the run has: what was checked before is not checked again.
        """
        tags = {}
        execution = self.executions.get(str(finished.card.get("card_sha256")))
        if execution is not None:
            tags = {**execution.links, RUNNER: execution.runner}
        entry = self.locked.get(finished.node.name, {})
        for out in entry.get("outs") or []:
            if out.get("path") == finished.artifact and "md5" in out:
                hashes = {OUT_MD5: str(out["md5"]), DEPS_MD5: _deps_md5(entry)}
                if hashes.items() <= known.items() or self._describes(out, finished):
                    tags |= hashes
        return tags

    def _describes(self, out: Mapping[str, Any], finished: Finished) -> bool:
        """Tell whether a lock's entry is about the artifact that lies there now.

        DVC writes its lock after the stage has left its artifact, and not at all for a stage that
        was called by hand.
        """
        md5, card = str(out["md5"]), finished.node.artifact / CARD
        listing = self.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
        try:
            data = card.read_bytes()
            entries = json.loads(listing.read_text(encoding="utf-8"))
            hashes = {entry["relpath"]: entry["md5"] for entry in entries}
            return bool(hashes[CARD] == hashlib.md5(data, usedforsecurity=False).hexdigest())
        except (OSError, ValueError, KeyError, TypeError):
            return self._has_size(out, finished)

    def _has_size(self, out: Mapping[str, Any], finished: Finished) -> bool:
        """Compare by size and age where DVC's cache lies elsewhere."""
        files = finished.card["files"]
        try:
            card = (finished.node.artifact / CARD).stat()
            newer = (self.root / "dvc.lock").stat().st_mtime >= card.st_mtime
        except OSError:
            return False
        size = card.st_size + sum(entry["bytes"] for entry in files.values())
        return newer and (out.get("size"), out.get("nfiles")) == (size, len(files) + 1)


def read_origins(layout: Layout) -> Origins:
    """Read the journal and `dvc.lock`; what is missing or damaged tells nothing."""
    executions: dict[str, journal.Execution] = {}
    for execution in journal.read(layout):
        earlier = executions.get(execution.card)
        made = earlier is not None and earlier.outcome == "completed"
        # One that only put the artifact back from DVC's cache did not make it.
        if execution.card and not (made and execution.outcome != "completed"):
            executions[execution.card] = execution
    lock = layout.root / "dvc.lock"
    try:
        state = lock.stat()
        locked = _read_lock(lock, state.st_mtime_ns, state.st_size)
    except OSError:
        locked = {}
    return Origins(layout.root, executions, locked)


@lru_cache(maxsize=1)
def _read_lock(lock: Path, _mtime: int, _size: int) -> Mapping[str, Mapping[str, Any]]:
    """Parse `dvc.lock` once for each state of it: with 400 stages it takes a second."""
    try:
        tree = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))  # in C where it is there
        return dict(tree["stages"])
    except (YAMLError, KeyError, TypeError, ValueError):
        return {}


def _deps_md5(entry: Mapping[str, Any]) -> str:
    """Return one hash over those of all dependencies: equal where the inputs were equal."""
    deps = sorted(f"{dep['path']}:{dep.get('md5')}" for dep in entry.get("deps") or [])
    return hashlib.md5("\n".join(deps).encode(), usedforsecurity=False).hexdigest()
