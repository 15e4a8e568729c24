"""What trials did with a stage, in a file: it outlives the worker, the runner and Ray."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdci.store.artifacts import storage_errors


@dataclass(frozen=True)
class History:
    """The attempts at a stage since its last result.

    Attributes:
        started: Unix seconds at which the first one began.
        seconds: From then to the end of the last one, the waits between them included.
        attempts: How many there were.
        exit_code: Of the last one; None: it was cut short.
        message: The stage's own last words, if it failed.
        links: Ids of the last one: `ray.trial_id`, ...
    """

    started: float
    seconds: float
    attempts: int
    exit_code: int | None = None
    message: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def begin(file: Path, links: Mapping[str, str]) -> None:
    """Note that an attempt begins."""
    _append(file, {"begin": time.time(), "links": dict(links)})


def end(file: Path, exit_code: int, message: str) -> None:
    """Note how it ended."""
    _append(file, {"end": time.time(), "exit_code": exit_code, "message": message})


def read_history(file: Path) -> History | None:
    """Return the attempts that a file tells of; None: of none."""
    rows = _rows(file)
    begins = [row for row in rows if "begin" in row]
    if not begins:
        return None
    last = rows[-1]
    started = float(begins[0]["begin"])
    latest = float(last.get("end", last.get("begin", started)))
    return History(
        started,
        latest - started,
        len(begins),
        last.get("exit_code"),
        str(last.get("message", "")),
        begins[-1]["links"],
    )


def forget(file: Path) -> None:
    """Remove what is noted: it is in the journal now."""
    file.unlink(missing_ok=True)


def _append(file: Path, row: Mapping[str, Any]) -> None:
    with storage_errors(file), file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):  # torn by a kill
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
    return rows
