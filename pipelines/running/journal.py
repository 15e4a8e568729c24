"""The journal of a workspace: which stages its runners ran, how that ended, and for whom.

Results do not depend on it. It is what lets `kdci explain` say what a stage took before, and
MLflow and Prefect point to each other.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kdci.errors import KdciError
from kdci.store.artifacts import read_card, storage_errors
from kdci.store.layout import Layout

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Execution:
    """What a runner did with a stage.

    Attributes:
        stage: Its name in DVC.
        outcome: `completed`, `restored` (from the run cache), `failed` or `stopped`.
        runner: `prefect`, `plain` or `ray`.
        started: Unix seconds.
        seconds: Wall time, the start of processes included.
        exit_code: That of the stage; 0: it succeeded.
        card: SHA-256 on the card of the artifact that it left; "": none.
        links: Tags of other tools: ``prefect.flow_run_id``, ``ray.trial_id``, ...
    """

    stage: str
    outcome: str
    runner: str
    started: float
    seconds: float
    exit_code: int = 0
    card: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def append(layout: Layout, execution: Execution) -> None:
    """Add a line, flushed to disk; several processes may do so at once.

    Raises:
        StorageError: The disk is full or not writable.
    """
    file = layout.work / JOURNAL
    line = json.dumps(asdict(execution), allow_nan=False) + "\n"
    with storage_errors(file, needed=len(line)):
        file.parent.mkdir(parents=True, exist_ok=True)
        # One write of an O_APPEND file is not torn by another writer's.
        handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = (line if _ends_a_line(handle) else f"\n{line}").encode()
            if os.write(handle, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            os.fsync(handle)
        finally:
            os.close(handle)


def _ends_a_line(handle: int) -> bool:
    """Tell whether a file ends with a whole line; a crash may have cut the last one short."""
    size = os.fstat(handle).st_size
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"


def read(layout: Layout) -> list[Execution]:
    """Return what was done, the oldest first; lines that a crash cut short are left out."""
    try:
        lines = (layout.work / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(Execution(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def card_of(path: Path, kind: str) -> str:
    """Return the SHA-256 on an artifact's card; "": there is none that can be read."""
    try:
        return str(read_card(path, kind=kind)["card_sha256"])
    except (KdciError, OSError):
        return ""
