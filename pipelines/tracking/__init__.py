"""An MLflow view of the experiment's files: stages write files, tracking reads files.

``sync`` makes the view once, ``follow`` keeps it fresh while stages run. Both are the only
writers of the MLflow store. Files are the truth: a store that is lost is made again from them,
and a second sync of the same files adds nothing. What lies where is told in docs/tracking.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from filelock import FileLock, Timeout

from kdci.config.params import Params
from kdci.errors import BusyError, KdciError, UserError
from kdci.graph.build import graph_of
from kdci.store.artifacts import storage_errors
from kdci.store.layout import Layout, all_cells
from pipelines.tracking.models import Models
from pipelines.tracking.reading.snapshot import take_snapshot
from pipelines.tracking.uri import resolve_uri, sqlite_file, store_errors
from pipelines.tracking.writing.run_links import links
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.view import SyncSummary, sync_once

__all__ = ["SyncSummary", "follow", "links", "resolve_uri", "set_champion", "sync"]

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another sync of the same store."""


def sync(layout: Layout, params: Params) -> SyncSummary:
    """Bring the MLflow view, and its model registry, up to date with the files of the params.

    Args:
        layout: Where the files are.
        params: The current params: their grid says which artifacts belong to the view.

    Returns:
        What was added, and what the files still lack.

    Raises:
        StorageError: The store does not answer or can not be written; the files are untouched.
        BusyError: Another sync holds the store for longer than a minute.
    """
    with _only_writer(layout) as uri:
        return sync_once(layout, params, Store(uri, layout))


def set_champion(layout: Layout, params: Params, cell: str) -> tuple[str, str]:
    """Let the alias `champion` of a registered model point at the student of ``cell``.

    A sync never moves this alias: which student is the best is for people to say.

    Args:
        layout: Where the files are.
        params: The current params.
        cell: Name of the cell, as in MLflow.

    Returns:
        Name of the registered model, and number of the version.

    Raises:
        UserError: The grid has no such cell, or it has no student.
        StorageError: The store does not answer or can not be written.
    """
    by_name = {one.name: one for one in all_cells(params.grid)}
    if cell not in by_name:
        raise UserError(cell, "is no cell of the current grid", f"such as {next(iter(by_name))}")
    with _only_writer(layout) as uri:
        store = Store(uri, layout)
        sync_once(layout, params, store, register=False)
        snapshot = take_snapshot(graph_of(params, layout.root), trusted=store.logged())
        with store_errors(uri):
            version = Models(snapshot, store).set_champion(by_name[cell])
    return version.name, str(version.version)


def follow(
    layout: Layout,
    params: Params,
    *,
    poll_interval: float = 5.0,
    on_pass: Callable[[SyncSummary], None] = lambda outcome: None,
) -> SyncSummary:
    """Sync again and again until every artifact is there and nothing runs, or until Ctrl-C.

    A store that fails later than in the first pass is tried again in the next one.

    Args:
        layout: Where the files are.
        params: The current params.
        poll_interval: Seconds between two passes.
        on_pass: Is told the outcome of each pass.

    Returns:
        The state at the last pass, with the runs and points of all passes added up.

    Raises:
        StorageError: The store fails in the first pass.
        BusyError: The store is held by another sync in the first pass.
    """
    with _only_writer(layout) as uri:
        store = Store(uri, layout)
        total = outcome = sync_once(layout, params, store)
    try:
        while True:
            on_pass(outcome)
            if not total.running and not total.pending:
                return total
            time.sleep(poll_interval)
            try:
                with _only_writer(layout):
                    outcome = sync_once(layout, params, store)
            except KdciError as error:
                # A server that restarts must not end a watch of many hours.
                nothing = replace(total, created=0, points=0, versions=0)
                pending = max(total.pending, 1)
                outcome = replace(nothing, pending=pending, warnings=(str(error),))
            total = replace(
                outcome,
                created=total.created + outcome.created,
                points=total.points + outcome.points,
                versions=total.versions + outcome.versions,
            )
    except KeyboardInterrupt:
        return total


@contextmanager
def _only_writer(layout: Layout) -> Iterator[str]:
    """Hold the store's lock and yield its URI: two writers of a fresh SQLite file break it."""
    uri = resolve_uri(layout.root)
    file = sqlite_file(uri)
    folder = layout.work if file is None else file.parent / layout.work.name
    lock = folder / "tracking.lock"
    with storage_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        holder = FileLock(lock)
        try:
            holder.acquire(timeout=LOCK_TIMEOUT)
        except Timeout:
            what = f"another sync has held it for {LOCK_TIMEOUT:g} s"
            raise BusyError(str(lock), what, "let it finish") from None
    try:
        yield uri
    finally:
        holder.release()
