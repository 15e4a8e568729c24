"""Is there room for what stages will write?"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from kdci.store.artifacts import CARD
from pipelines.checking.diagnosis.findings import Finding, ok, problem, warning

SCARCE_BYTES = 10**9
TOO_FEW_BYTES = 10**8
_DISK_CODE = 4


def largest_artifact(root: Path) -> int:
    """Return the bytes of the largest artifact, by what the cards say; 0: there is none."""
    largest = 0
    for card in (root / "artifacts").rglob(CARD):
        try:
            files = json.loads(card.read_text(encoding="utf-8"))["files"]
            largest = max(largest, sum(int(entry["bytes"]) for entry in files.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # `kdci verify` tells
    return largest


def size(num_bytes: float) -> str:
    """Return a number of bytes as a person says it."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def check_room(what: str, folder: Path, largest: int) -> Finding:
    """Look at the room in a folder that a run writes to.

    Args:
        what: What the folder is.
        folder: Its place.
        largest: Bytes of the largest artifact so far.
    """
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(place, os.W_OK):
        return problem(f"{what} can not be written: {folder}", exit_code=_DISK_CODE)
    free = shutil.disk_usage(place).free
    told = f"{what}: {size(free)} free ({folder})"
    mend = "free some: `kdci clean`, `dvc gc --workspace`"
    if free < max(largest, TOO_FEW_BYTES):
        told += f", the largest artifact takes {size(largest)}" if free < largest else ""
        return problem(told, mend, exit_code=_DISK_CODE)
    return warning(told, mend) if free < SCARCE_BYTES else ok(told)
