"""What earlier runs left that nothing will go on from."""

from __future__ import annotations

from collections.abc import Iterator

from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.store.layout import Layout
from pipelines.checking.diagnosis.disk import size
from pipelines.checking.diagnosis.findings import Finding, ok, warning


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
        total = size(sum(one.num_bytes for one in removals))
        yield warning(f"{len(removals)} left-over folders, {total}", "run `kdci clean`")
