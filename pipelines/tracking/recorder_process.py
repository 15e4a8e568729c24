"""``python -m pipelines.tracking.recorder_process``: sync until stdin ends, and tell."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.store.layout import Layout
from pipelines.flow.telemetry import switch_off
from pipelines.tracking.recorder import Record
from pipelines.tracking.uri import without_secrets

POLL_SECONDS = 15.0
PRIORITY = 10


def main() -> int:
    """Keep the record; the last line of stdout is what became of it."""
    # A Ctrl-C is for the run, which ends this process in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    switch_off()
    with suppress(OSError):
        os.nice(PRIORITY)
    root = Path.cwd()
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    from pipelines import tracking

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
