"""``python -m pipelines.sweeping.guarded PARENT SHARE MODULE ...``: it ends with its parent.

A stage watches over its parent itself, but only once it runs. This holds from the start: no
worker dies unnoticed while Python and torch are being loaded.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from stages.signals import StopFlag, die_with_parent


def command(module_call: Sequence[str], *, gpu_share: float) -> list[str]:
    """Return the command by which this process runs a module.

    Args:
        module_call: The module and its arguments.
        gpu_share: Share of the GPU's memory that it may take; 0: as much as there is.
    """
    this = [sys.executable, "-m", "pipelines.sweeping.guarded"]
    return [*this, str(os.getpid()), str(gpu_share), *module_call]


def main(arguments: Sequence[str]) -> int:
    """Run a module as `python -m` does, unless the process that asked for it is gone."""
    parent, share, module, *rest = arguments
    orphaned = StopFlag()
    die_with_parent(orphaned)
    if os.getppid() != int(parent):
        return 143
    if float(share):
        _limit_gpu(float(share))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _limit_gpu(share: float) -> None:
    """Have torch fail in this process rather than in the one it shares the GPU with."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
