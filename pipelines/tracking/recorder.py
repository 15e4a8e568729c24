"""MLflow's record of a run, kept while it goes on by a process of its own.

Stages and runners never talk to MLflow: the process, ``python -m pipelines.tracking.recorder``,
reads files (``pipelines.tracking``) and runs at low priority. A store that is slow or gone costs
the run nothing; `kdci sync` makes up for it afterwards.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self, TextIO

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.store.layout import Layout
from pipelines import tracking
from pipelines.flow.telemetry import switch_off
from pipelines.tracking.uri import without_secrets

FINISH_SECONDS = 120.0
"""How long the last pass may take before it is given up."""
POLL_SECONDS = 15.0
PRIORITY = 10


@dataclass(frozen=True)
class Record:
    """What was recorded.

    Attributes:
        text: The outcome in a line, or why there is none.
        where: How to open MLflow.
        links: MLflow run by stage.
        warnings: Files that were left out, one line each.
    """

    text: str = ""
    where: str = ""
    links: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class Recorder:
    """Keeps the record up to date for as long as the block lasts.

    Args:
        root: The project folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[str] | None = None
        self._record: Record | None = None
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.tracking.recorder"],
            cwd=self._root,
            # The end of stdin tells it to finish, however this process ends.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def finish(self) -> Record | None:
        """Have the last pass made and return what was recorded; None: it was given up.

        Asked again, by the flow and by the command, it returns the same.
        """
        with self._ending:
            process, self._process = self._process, None
            if process is not None:
                self._record = _record_of(process)
            return self._record


def _record_of(process: subprocess.Popen[str]) -> Record | None:
    try:
        out, _ = process.communicate(timeout=FINISH_SECONDS)
        return Record(**json.loads(out.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    except (ValueError, IndexError, TypeError):
        pass
    return None


def main() -> int:
    """Keep the record until stdin ends; the last line of stdout is what became of it."""
    # A Ctrl-C is for the run, which ends this process in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    switch_off()
    with suppress(OSError):
        os.nice(PRIORITY)
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    created = points = 0
    while not _ended(sys.stdin, POLL_SECONDS):
        with suppress(Exception):  # told by the last pass, if it lasts
            outcome = tracking.sync(layout, params)
            created, points = created + outcome.created, points + outcome.points
    try:
        outcome = tracking.sync(layout, params)
        where, links = tracking.links(layout, params)
    except Exception as error:  # whatever it is, the run is told and goes on
        why = error if isinstance(error, KdciError) else without_secrets(str(error))
        record = Record(text=f"{why}; `kdci sync` records it later")
    else:
        created, points = created + outcome.created, points + outcome.points
        text = f"{outcome.experiment}: {created} runs and {points} points added"
        record = Record(text, where, links, list(outcome.warnings))
    sys.stdout.write(json.dumps(asdict(record)) + "\n")
    return 0


def _ended(stream: TextIO, seconds: float) -> bool:
    """Wait for ``stream`` to end, for that long; tell whether it has."""
    readable, _, _ = select.select([stream], [], [], seconds)
    return bool(readable) and not stream.read(1)


if __name__ == "__main__":
    sys.exit(main())
