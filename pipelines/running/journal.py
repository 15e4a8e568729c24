"""The journal of a workspace: which stages its runners ran, how that ended, and for whom.

Results do not depend on it. It is what lets `kdci explain` say what a stage took before, and
MLflow and Prefect point to each other.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdci.errors import StorageError
from kdci.graph.node import Node
from kdci.graph.standing import card_at
from kdci.store.artifacts import storage_errors
from kdci.store.layout import Layout
from pipelines.running.stage_process import Outcome, State

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Execution:
    """What a runner did with a stage; see ``Outcome``.

    Attributes:
        outcome: `completed`, `restored` (from the run cache), `failed` or `stopped`.
        runner: `prefect`, `plain` or `ray`.
        card: SHA-256 on the card of the artifact that it left; "": none.
        links: Tags of other tools: ``prefect.flow_run_id``, ``ray.trial_id``, ...
        kind: Which stage it is: `teacher`, `distill`, ...; "": not told.
        point: Its axes as text, as ``Node.fields`` has them.
    """

    stage: str
    outcome: str
    runner: str
    started: float
    seconds: float
    exit_code: int = 0
    card: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""
    point: Mapping[str, str] = field(default_factory=dict)


def note(
    layout: Layout, outcome: Outcome, node: Node | None, *, runner: str, links: Mapping[str, str]
) -> None:
    """Add what came of a stage, whose node is None if the params do not know it.

    One that was not even started, or had nothing to do, is left out.
    """
    if outcome.state in (State.cached, State.not_run):
        return
    card = card_at(node.artifact, node.kind) if node and outcome.has_result else None
    execution = Execution(
        stage=outcome.stage,
        outcome=str(outcome.state),
        runner=runner,
        started=outcome.started,
        seconds=round(outcome.seconds, 3),
        exit_code=outcome.exit_code,
        card=str(card["card_sha256"]) if card else "",
        links=links,
        kind=node.stage if node else "",
        point=node.fields if node else {},
    )
    with suppress(StorageError):  # the stage is done, whether or not it can be noted
        append(layout, execution)


def append(layout: Layout, execution: Execution) -> None:
    """Add an execution.

    Raises:
        StorageError: The disk is full or not writable.
    """
    append_line(layout.work / JOURNAL, asdict(execution))


def append_line(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line of JSON, flushed to disk; several processes may do so at once.

    Raises:
        StorageError: The disk is full or not writable.
    """
    line = json.dumps(row, allow_nan=False) + "\n"
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
    """Return what was done, the oldest first."""
    found = []
    for row in read_lines(layout.work / JOURNAL):
        with suppress(TypeError):  # of another version
            found.append(Execution(**row))
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; lines that a crash cut short are left out."""
    rows = []
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]
