"""Is there room for what stages will write, and what have earlier runs left there?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.store.artifacts import CARD
from kdci.store.layout import Layout
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


def amount(num_bytes: float) -> str:
    """Return bytes as a person says them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= 0.95 * size:
            return f"{two_digits(num_bytes / size)} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def two_digits(value: float) -> str:
    """Return a number with the digits that count."""
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 100 else f"{round(value, -1):,.0f}"


def check_room(what: str, folder: Path, largest: int) -> Finding:
    """Look at the room in a folder that a run writes to, for the bytes of the largest artifact."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    if not os.access(place, os.W_OK):
        return problem(f"{what} can not be written: {folder}", exit_code=_DISK_CODE)
    free = shutil.disk_usage(place).free
    told = f"{what}: {amount(free)} free ({folder})"
    mend = "free some: `kdci clean`, `dvc gc --workspace`"
    if free < max(largest, TOO_FEW_BYTES):
        told += f", the largest artifact takes {amount(largest)}" if free < largest else ""
        return problem(told, mend, exit_code=_DISK_CODE)
    return warning(told, mend) if free < SCARCE_BYTES else ok(told)


def check_leftovers(layout: Layout) -> Iterator[Finding]:
    """Count checkpoints that `kdci clean` would remove, and those that a run goes on from."""
    folders = [one for one in (layout.work / "work").glob("*/*") if one.is_dir()]
    unfinished = [one for one in (layout.root / "artifacts").rglob(".*.tmp") if one.is_dir()]
    if not folders and not unfinished:
        yield ok("no checkpoint is left over")
        return
    try:
        params = load_params(layout.root / "params.yaml")
        from pipelines.checking.housekeeping import clean  # loads torch

        removals = clean(params, layout, dry_run=True)
    except KdciError as error:
        yield warning(f"left-over checkpoints can not be told: {error}", "run `kdci check`")
        return
    useful = len(folders) - sum(one.path in folders for one in removals)
    if useful:
        yield ok(f"{useful} checkpoints that a run goes on from")
    if removals:
        total = amount(sum(one.num_bytes for one in removals))
        yield warning(f"{len(removals)} left-over folders, {total}", "run `kdci clean`")
