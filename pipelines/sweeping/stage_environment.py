"""The environment of a stage that a Ray worker starts: what `dvc repro` would give it."""

from __future__ import annotations

from collections.abc import Mapping

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


def stage_environment(
    worker: Mapping[str, str], runner: Mapping[str, str], *, root: str, stage: str | None = None
) -> dict[str, str]:
    """Return the environment of a stage.

    Args:
        worker: The environment of the Ray worker, whose paths and GPU the stage has.
        runner: The deciding variables of the runner; those that it lacks are unset.
        root: The project folder.
        stage: The stage's name in DVC; None: DVC is to record nothing of it.

    Returns:
        The worker's environment with the runner's deciding variables, and nothing of Ray's: its
        token is not for stages.
    """
    kept = {
        name: value
        for name, value in worker.items()
        if not name.startswith((*DECIDING, "RAY_", "TUNE_")) and name != "PYTHONBREAKPOINT"
    }
    added = {"DVC_ROOT": root, "PYTHONUNBUFFERED": "1"}
    added |= {} if stage is None else {"DVC_STAGE": stage}
    return {**kept, **runner, **added}
