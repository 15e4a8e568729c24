"""MLflow's record of a run, kept while it goes on by a process of its own.

Stages and runners never talk to MLflow: the process reads files (``pipelines.tracking``) and
runs at low priority. A store that is slow or gone costs the run nothing; `kdci sync` makes up
for it afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

FINISH_SECONDS = 120.0
"""How long the last pass may take before it is given up."""


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
            [sys.executable, "-m", "pipelines.tracking.recorder_process"],
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()

    def finish(self) -> Record | None:
        """Have the last pass made and return what was recorded; None: it was given up.

        Asked again, by the flow and by the command, it returns the same.
        """
        with self._ending:
            return self._finish()

    def _finish(self) -> Record | None:
        process, self._process = self._process, None
        if process is None:
            return self._record
        try:
            out, _ = process.communicate(timeout=FINISH_SECONDS)
            self._record = Record(**json.loads(out.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        except (ValueError, IndexError, TypeError):
            self._record = None
        return self._record
