"""``python -m pipelines.running.dvc_process ...``: the `dvc` command, stopped when its parent dies.

A killed runner would otherwise leave DVC and its stage behind. The stage watches over DVC in
the same way, so the whole line ends.
"""

from __future__ import annotations

import sys

from pipelines.flow.telemetry import switch_off
from stages.signals import StopFlag, die_with_parent


def main() -> int:
    """Run `dvc` with this process's arguments and return its exit code."""
    orphaned = StopFlag()
    die_with_parent(orphaned)
    if orphaned.signal_number is not None:
        return 128 + orphaned.signal_number
    switch_off()
    from dvc.cli import main as dvc

    return int(dvc(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
