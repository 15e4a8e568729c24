"""A stage's own command as a process on a Ray worker: with the runner's threads, and no longer.

A stage watches over its parent itself, but only once it runs. It is started by way of
``python -m pipelines.sweeping.guarded PARENT SHARE MODULE ...``, where this holds from the start:
no worker dies unnoticed while Python and torch are being loaded.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stages.signals import StopFlag, die_with_parent

GRACE_SECONDS = 30.0
"""How long a stopped stage has to save its state before it is killed."""
DECIDING = (
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "DNNL_",
    "ONEDNN_",
    "OPENBLAS_",
    "VECLIB_",
    "NUMEXPR_",
    "ATEN_",
    "TORCH_",
    "PYTORCH_",
    "CUBLAS_",
    "NVIDIA_TF32_",
)
"""Beginnings of the names of variables that threads and bits depend on.

Ray sets OMP_NUM_THREADS in its workers to the CPUs of the trial, whatever the runner's is.
"""


def deciding(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a result may depend on."""
    return {name: value for name, value in environment.items() if name.startswith(DECIDING)}


@dataclass(frozen=True)
class Guard:
    """What the stages that a worker starts have in common.

    Attributes:
        root: The project folder: the same on every node.
        environment: The deciding variables of the runner; those that it lacks are unset.
        gpu_share: Share of a GPU's memory that a stage may take; 0: as much as there is.
    """

    root: Path
    environment: Mapping[str, str]
    gpu_share: float = 0.0

    def start(
        self, module_call: Sequence[str], log: Path, *, stage: str | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a module with its arguments in the project folder.

        Args:
            module_call: The module and its arguments.
            log: Gets its output at the end. A file and not a pipe: it outlives this worker, and a
                stage that is told to end by the worker's death must be able to say so.
            stage: The stage's name in DVC; None: DVC is to record nothing of it.
        """
        with log.open("ab") as out:
            return subprocess.Popen(
                command(module_call, gpu_share=self.gpu_share),
                cwd=self.root,
                env=self.variables(os.environ, stage=stage),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C on the terminal reaches the runner alone
            )

    def variables(self, worker: Mapping[str, str], *, stage: str | None = None) -> dict[str, str]:
        """Return the environment of a stage: what `dvc repro` would give it.

        Args:
            worker: The environment of the Ray worker, whose paths and GPU the stage has.
            stage: As in ``start``.

        Returns:
            The worker's environment with the runner's deciding variables, and nothing of Ray's:
            its token is not for stages.
        """
        kept = {
            name: value
            for name, value in worker.items()
            if not name.startswith((*DECIDING, "RAY_", "TUNE_")) and name != "PYTHONBREAKPOINT"
        }
        added = {"DVC_ROOT": str(self.root), "PYTHONUNBUFFERED": "1"}
        added |= {} if stage is None else {"DVC_STAGE": stage}
        return {**kept, **self.environment, **added}


def command(module_call: Sequence[str], *, gpu_share: float) -> list[str]:
    """Return the command by which this process runs a module; see ``Guard``."""
    this = [sys.executable, "-m", "pipelines.sweeping.guarded"]
    return [*this, str(os.getpid()), str(gpu_share), *module_call]


def end(process: subprocess.Popen[bytes]) -> None:
    """Have a process save its state and end, if it has not; it is killed if it does not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_words(log: Path) -> str:
    """Return the error that a stage ended with, or its last line; "": it said nothing."""
    try:
        text = log.read_bytes()[-20_000:].decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("kdci: error:")]
    return (own or lines or [""])[-1]


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
