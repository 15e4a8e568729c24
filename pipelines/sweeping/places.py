"""Where a sweep keeps its own files: below the work folder, for this user alone."""

from __future__ import annotations

from pathlib import Path

from kdci.store.artifacts import storage_errors
from kdci.store.layout import Layout


def sweep_folder(layout: Layout) -> Path:
    """Return the absolute folder of Ray's experiments, logs and attempts."""
    return (layout.work / "ray").absolute()


def prepare_folder(layout: Layout) -> Path:
    """Make the folder and return it.

    Raises:
        StorageError: It can not be made.
    """
    folder = sweep_folder(layout)
    with storage_errors(folder):
        for place in (folder, folder / "logs", folder / "attempts"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # Ray leaves pickles there, which whoever resumed it would run
        (folder / "stop").unlink(missing_ok=True)
    return folder


def log_of(folder: Path, stage: str) -> Path:
    """Return the file of a stage's output."""
    return folder / "logs" / f"{stage}.log"


def attempts_of(folder: Path, stage: str) -> Path:
    """Return the file of a stage's attempts."""
    return folder / "attempts" / f"{stage}.jsonl"


def stop_file(folder: Path) -> Path:
    """Return the file whose presence asks trials to end."""
    return folder / "stop"
