"""The way from stages and cells to their MLflow runs, for those who show it elsewhere."""

from __future__ import annotations

from urllib.parse import urlsplit

from kdci.config.params import Params
from kdci.store.layout import Layout, all_cells
from pipelines.tracking.reading.files import slots
from pipelines.tracking.uri import redacted
from pipelines.tracking.writing.record import ARTIFACT, CELL, RunRecord
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.tags import RUN


def run_links(layout: Layout, params: Params, store: Store) -> tuple[str, dict[str, str]]:
    """Return how to open the view, and the newest run of each stage and cell.

    Args:
        layout: Where the files are.
        params: The current params.
        store: The opened store; it is read here.

    Returns:
        The address of the experiment, or the command that shows it; and by name in DVC, or by the
        name of a cell, the address of the run where a server shows it, else its id.
    """
    store.refresh()
    served = urlsplit(store.uri).scheme in ("http", "https")
    address = f"{redacted(store.uri).rstrip('/')}/#/experiments/{store.experiment_id}"
    found: dict[str, RunRecord] = {}
    for slot in slots(layout, params.grid):
        runs = store.find({ARTIFACT: slot.artifact, RUN: "stage"})
        if runs:
            found[slot.dvc_stage] = max(runs, key=lambda run: run.started)
    for cell in all_cells(params.grid):
        for run in store.find({CELL: cell.name, RUN: "cell"}):
            found[cell.name] = run
    reports = [run for run in store.records if run.tags.get(RUN) == "report"]
    if reports:
        found["report"] = max(reports, key=lambda run: run.started)
    links = {
        name: f"{address}/runs/{run.run_id}" if served else run.run_id
        for name, run in found.items()
    }
    command = f'mlflow ui --backend-store-uri "{redacted(store.uri)}" --host 127.0.0.1'
    return address if served else command, links
