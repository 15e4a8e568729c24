"""One pass: everything that a snapshot of the files holds and a store lacks is written."""

from __future__ import annotations

from dataclasses import dataclass

from kdci.config.params import Params
from kdci.graph.build import graph_of
from kdci.store.layout import Layout
from pipelines.tracking.models import Models
from pipelines.tracking.reading.files import Report
from pipelines.tracking.reading.snapshot import take_snapshot
from pipelines.tracking.uri import store_errors
from pipelines.tracking.writing.cell_runs import CellRuns
from pipelines.tracking.writing.stage_runs import StageRuns
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.tags import CONTENT, PRESET, RUN
from pipelines.tracking.writing.trial_runs import show_searches


@dataclass(frozen=True)
class SyncSummary:
    """Outcome of a sync.

    Attributes:
        experiment: Name of the MLflow experiment.
        created: Runs added.
        points: Metric points added.
        running: Stages at work now.
        pending: Expected artifacts that are missing, damaged or outdated.
        warnings: Files that were left out and models that wait, one line each.
        versions: Versions added to the model registry.
    """

    experiment: str
    created: int
    points: int
    running: int
    pending: int
    warnings: tuple[str, ...]
    versions: int = 0


def sync_once(
    layout: Layout, params: Params, store: Store, *, register: bool = True
) -> SyncSummary:
    """Write what a store lacks of the files of the current params; see ``pipelines.tracking.sync``.

    ``register`` tells whether to fill the model registry too, while no stage is at work.
    """
    store.refresh()
    files = take_snapshot(graph_of(params, layout.root), trusted=store.logged())
    with store_errors(store.uri):
        cell_runs = CellRuns(files, store)
        stage_runs = StageRuns(files, store, cell_runs)
        for work in files.work:
            stage_runs.show_work(work)
        for finished in files.finished.values():
            shown = stage_runs.show_finished(finished)
            if shown is not None:
                stage_runs.amend(finished, shown)
                cell_runs.show_scores(finished, shown)
        for node in files.nodes:
            if node.student is not None:
                cell_runs.show(node.student)
        if files.report is not None:
            _show_report(files.report, layout.preset, store)
        show_searches(layout, store)
        stage_runs.end_abandoned()
        models = Models(files, store)
        if register and not files.running:  # exports would take time from stages
            models.register()
        return SyncSummary(
            experiment=store.experiment,
            created=store.created,
            points=store.points,
            running=files.running,
            pending=files.pending,
            warnings=(*files.warnings, *models.warnings),
            versions=models.added,
        )


def _show_report(report: Report, preset: str, store: Store) -> None:
    known = {CONTENT: report.content, RUN: "report"}
    tags = {"dvc.stage": "report", "kdci.stage": "report", PRESET: preset}
    record = store.ensure("report", known, tags, started=report.written)
    if record.status == "FINISHED":
        return
    for name, file in report.files.items():
        store.copy(record, file, name.rpartition("/")[0] or None)
    store.set_status(record, "FINISHED", ended=report.written)
