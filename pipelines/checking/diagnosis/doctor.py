"""`kdci doctor`: what is wrong around the pipeline, and how to mend it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kdci.store.layout import Layout
from pipelines.checking.diagnosis.findings import Finding, Level, ok, problem, warning
from pipelines.checking.diagnosis.versions import (
    check_metadata,
    check_prefect_server,
    check_versions,
)
from pipelines.flow.telemetry import switch_off


def examine(root: Path | None, *, deep: bool = False) -> Iterator[Finding]:
    """Yield findings as they come, the quick ones first.

    Args:
        root: The project folder; None: there is none, and versions are all that is looked at.
        deep: Whether to look at what takes many seconds, too.
    """
    analytics = os.environ.get("DVC_NO_ANALYTICS")  # as the caller has it
    switch_off()
    yield from check_versions()
    if root is not None:
        yield from check_metadata(root)
        yield from _examine_project(root, dvc_is_silenced=bool(analytics))
    if deep:
        yield check_prefect_server()


def repaired(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings, those that are certain and harmless to put right after that was done."""
    done: dict[Callable[[], str], str] = {}  # several findings may share what puts them right
    for finding in findings:
        if finding.repair is None:
            yield finding
            continue
        if finding.repair not in done:
            done[finding.repair] = finding.repair()
        yield ok(f"{finding.what}: {done[finding.repair]}")


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code: that of the gravest problem; 0: there is none."""
    return max((one.exit_code for one in findings if one.level is Level.problem), default=0)


def _examine_project(root: Path, *, dvc_is_silenced: bool) -> Iterator[Finding]:
    from pipelines.checking.diagnosis.disk import check_leftovers
    from pipelines.checking.diagnosis.locks import check_locks
    from pipelines.checking.diagnosis.processes import check_processes
    from pipelines.checking.diagnosis.servers import check_servers

    layout = Layout(root, "")
    yield from check_locks(layout)
    yield from check_processes(root)
    yield from check_servers(root)
    yield from _dvc(root, dvc_is_silenced=dvc_is_silenced)
    yield from check_leftovers(layout)


def _dvc(root: Path, *, dvc_is_silenced: bool) -> Iterator[Finding]:
    """Look at what DVC's configuration says: whether it tells anybody, and where its cache is."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    from pipelines.checking.diagnosis.disk import check_room, largest_artifact

    places = {"the project": root, "temporary files": Path(tempfile.gettempdir())}
    try:
        with Repo(str(root)) as repo:
            telling = bool(repo.config["core"].get("analytics", True))
            places["DVC's cache"] = Path(repo.cache.local.path)
    except DvcException as error:
        yield problem(f"DVC: {' '.join(str(error).split())}", "mend it, or see --root")
    else:
        if telling and not dvc_is_silenced:
            yield warning("DVC reports its use to its makers", "dvc config core.analytics false")
        else:
            yield ok("telemetry is off: DVC's by its configuration, the others' by kdci")
    largest = largest_artifact(root)
    yield from (check_room(what, folder, largest) for what, folder in places.items())
