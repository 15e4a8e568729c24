"""A sweep's own files, for this user alone; what trials did with a stage outlives them and Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdci.store.artifacts import storage_errors
from kdci.store.layout import Layout
from pipelines.running.journal import append_line, read_lines


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


def prepare_folder(layout: Layout) -> Path:
    """Make the absolute folder of Ray's experiments, logs and attempts, and return it.

    Raises:
        StorageError: It can not be made.
    """
    folder = (layout.work / "ray").absolute()
    with storage_errors(folder):
        for place in (folder, folder / "logs", folder / "attempts"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # Ray leaves pickles there, which whoever resumed it would run
        stop_file(folder).unlink(missing_ok=True)
    return folder


def log_of(folder: Path, stage: str) -> Path:
    """Return the file of a stage's output."""
    return folder / "logs" / f"{stage}.log"


def stop_file(folder: Path) -> Path:
    """Return the file whose presence asks trials to end."""
    return folder / "stop"


def begin(folder: Path, stage: str, links: Mapping[str, str]) -> None:
    """Note that an attempt at a stage begins."""
    append_line(_attempts(folder, stage), {"begin": time.time(), "links": dict(links)})


def end(folder: Path, stage: str, exit_code: int, message: str) -> None:
    """Note how it ended."""
    row = {"end": time.time(), "exit_code": exit_code, "message": message}
    append_line(_attempts(folder, stage), row)


def read_history(folder: Path, stage: str) -> History | None:
    """Return the attempts at a stage that are noted; None: there are none."""
    rows = read_lines(_attempts(folder, stage))
    begins = [row for row in rows if "begin" in row]
    if not begins:
        return None
    last = rows[-1]
    started = float(begins[0]["begin"])
    return History(
        started,
        float(last.get("end", last.get("begin", started))) - started,
        len(begins),
        last.get("exit_code"),
        str(last.get("message", "")),
        begins[-1]["links"],
    )


def forget(folder: Path, stage: str) -> None:
    """Remove what is noted: it is in the journal now."""
    _attempts(folder, stage).unlink(missing_ok=True)


def _attempts(folder: Path, stage: str) -> Path:
    return folder / "attempts" / f"{stage}.jsonl"
