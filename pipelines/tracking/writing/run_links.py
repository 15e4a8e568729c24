"""The way from stages and cells to their MLflow runs, for those who show it elsewhere."""

from __future__ import annotations

from urllib.parse import urlsplit

from kdci.graph.build import Graph
from kdci.store.layout import all_cells
from pipelines.tracking.uri import redacted
from pipelines.tracking.writing.record import ARTIFACT, CELL, RunRecord
from pipelines.tracking.writing.store import Store
from pipelines.tracking.writing.tags import RUN


def run_links(graph: Graph, store: Store) -> tuple[str, dict[str, str]]:
    """Return how to open the view, and the newest run of each stage and cell.

    Args:
        graph: The current params' graph.
        store: The opened store; it is read here.

    Returns:
        The address of the experiment, or the command that shows it; and by name in DVC, or by the
        name of a cell, the address of the run where a server shows it, else its id.
    """
    store.refresh()
    served = urlsplit(store.uri).scheme in ("http", "https")
    address = f"{redacted(store.uri).rstrip('/')}/#/experiments/{store.experiment_id}"
    found: dict[str, RunRecord] = {}
    for node in graph.nodes.values():
        runs = store.find({ARTIFACT: graph.layout.relative(node.artifact), RUN: "stage"})
        if runs:
            found[node.name] = max(runs, key=lambda run: run.started)
    for cell in all_cells(graph.params.grid):
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
