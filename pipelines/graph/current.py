"""The graph of a project as it is now, with cells.yaml saying the same."""

from __future__ import annotations

from pathlib import Path

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.graph.build import Graph, graph_of
from kdci.graph.cells import renew_cells


def current_graph(root: Path, params: Params | None = None) -> Graph:
    """Return the graph of a project; its cells.yaml is renewed first, which DVC reads.

    Args:
        root: The project folder.
        params: As read from its params.yaml; None: they are read.

    Raises:
        UserError: The params are not valid.
        StorageError: cells.yaml can not be written.
    """
    graph = graph_of(params or load_params(root / "params.yaml", methods=False), root)
    if (root / "dvc.yaml").is_file():
        renew_cells(graph)
    return graph
