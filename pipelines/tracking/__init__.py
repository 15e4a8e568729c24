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
from pipelines.tracking.uri import redacted, resolve_uri, sqlite_file, store_errors
from pipelines.tracking.writing.run_links import links
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.view import SyncSummary, write_view

__all__ = ["SyncSummary", "follow", "links", "redacted", "resolve_uri", "set_champion", "sync"]

LOCK_TIMEOUT = 60.0
"""Seconds to wait for another sync of the same store."""


def sync(
    layout: Layout, params: Params, *, tracking_uri: str | None = None, register: bool = True
) -> SyncSummary:
    """Bring the MLflow view up to date with the files of the current params.

    Args:
        layout: Where the files are.
        params: The current params: their grid says which artifacts belong to the view.
        tracking_uri: MLflow store; None: ``MLFLOW_TRACKING_URI``, else a SQLite file in the
            project folder.
        register: Whether to add to the model registry too; that waits while a stage is at work.

    Returns:
        What was added, and what the files still lack.

    Raises:
        StorageError: The store does not answer or can not be written; the files are untouched.
        BusyError: Another sync holds the store for longer than a minute.
    """
    uri = resolve_uri(layout.root, tracking_uri)
    with _only_writer(layout, uri):
        return _one_pass(layout, params, Store(uri, layout), register=register)


def set_champion(
    layout: Layout, params: Params, cell: str, *, tracking_uri: str | None = None
) -> tuple[str, str]:
    """Let the alias `champion` of a registered model point at the student of ``cell``.

    A sync never moves this alias: which student is the best is for people to say.

    Args:
        layout: Where the files are.
        params: The current params.
        cell: Name of the cell, as in MLflow.
        tracking_uri: As for ``sync``.

    Returns:
        Name of the registered model, and number of the version.

    Raises:
        UserError: The grid has no such cell, or it has no student.
        StorageError: The store does not answer or can not be written.
    """
    by_name = {one.name: one for one in all_cells(params.grid)}
    if cell not in by_name:
        raise UserError(cell, "is no cell of the current grid", f"such as {next(iter(by_name))}")
    uri = resolve_uri(layout.root, tracking_uri)
    with _only_writer(layout, uri):
        store = Store(uri, layout)
        _one_pass(layout, params, store, register=False)
        snapshot = take_snapshot(graph_of(params, layout.root), trusted=store.logged())
        with store_errors(uri):
            version = Models(snapshot, store).set_champion(by_name[cell])
    return version.name, str(version.version)


def follow(
    layout: Layout,
    params: Params,
    *,
    tracking_uri: str | None = None,
    poll_interval: float = 5.0,
    on_pass: Callable[[SyncSummary], None] | None = None,
    register: bool = True,
) -> SyncSummary:
    """Sync again and again until every artifact is there and nothing runs, or until Ctrl-C.

    A store that fails later than in the first pass is tried again in the next one.

    Args:
        layout: Where the files are.
        params: The current params.
        tracking_uri: As for ``sync``.
        poll_interval: Seconds between two passes.
        on_pass: Is told the outcome of each pass.
        register: As for ``sync``.

    Returns:
        The state at the last pass, with the runs and points of all passes added up.

    Raises:
        StorageError: The store fails in the first pass.
        BusyError: The store is held by another sync in the first pass.
    """
    uri = resolve_uri(layout.root, tracking_uri)
    with _only_writer(layout, uri):
        store = Store(uri, layout)
        total = _one_pass(layout, params, store, register=register)
    outcome = total
    try:
        while True:
            if on_pass is not None:
                on_pass(outcome)
            if not total.running and not total.pending:
                return total
            time.sleep(poll_interval)
            try:
                with _only_writer(layout, uri):
                    outcome = _one_pass(layout, params, store, register=register)
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


def _one_pass(layout: Layout, params: Params, store: Store, *, register: bool) -> SyncSummary:
    store.refresh()
    snapshot = take_snapshot(graph_of(params, layout.root), trusted=store.logged())
    with store_errors(store.uri):
        return write_view(snapshot, store, register=register)


@contextmanager
def _only_writer(layout: Layout, uri: str) -> Iterator[None]:
    """Hold the store's lock: two writers of a fresh SQLite file break each other."""
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
        yield
    finally:
        holder.release()
