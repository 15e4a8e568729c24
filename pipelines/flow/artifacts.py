"""What a run shows in Prefect's UI: the pool's images, the dictionary, the table of results.

All of it is read from the files that the stages left.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

from kdci.config.params import Params
from kdci.graph.node import Node
from kdci.store.layout import Layout


def publish(node: Node, params: Params, layout: Layout) -> None:
    """Show the artifact of a stage, if it is one that is looked at: a pool or a dictionary."""
    show = {"pool": _publish_pool, "dictionary": _publish_dictionary}.get(node.kind)
    if show is not None:
        place, of = (layout.other, params.of_other()) if node.of_other else (layout, params)
        axes = (str(node.point["teacher"]), node.method, int(node.point["pool_seed"]))
        show(node.name, place, axes, of.data.spec.class_names)


def publish_results(layout: Layout) -> None:
    """Show the table of results, if there is a report of this preset."""
    from prefect.artifacts import create_markdown_artifact

    from kdci.reporting.results import load_rows
    from kdci.reporting.text.tables import terminal_table

    file = layout.report / "results.json"
    rows = load_rows(file) if file.is_file() else []
    if not rows or {row.preset for row in rows} != {layout.preset}:
        return
    create_markdown_artifact(
        key=_key("results", layout.preset),
        markdown=f"```\n{terminal_table(rows)}\n```",
        description="Accuracy of each method with and without KDCI, of report/results.json",
    )


def publish_links(layout: Layout, where: str, links: Mapping[str, str]) -> None:
    """Show which MLflow run holds the record of each stage.

    Args:
        layout: The experiment.
        where: How to open MLflow: an address, or the command that serves the file.
        links: MLflow's run, as an id or an address, by stage.
    """
    from prefect.artifacts import create_markdown_artifact

    rows = [f"| {stage} | {_shown(link)} |" for stage, link in links.items()]
    table = "\n".join(["| stage | MLflow run |", "|---|---|", *rows])
    create_markdown_artifact(
        key=_key("mlflow", layout.preset),
        markdown=f"MLflow: {_shown(where)}\n\n{table}",
        description="The runs of this experiment in MLflow",
    )


def _shown(link: str) -> str:
    if not link.startswith("http"):
        return f"`{link}`"
    return f"[{link.rpartition('/')[2]}]({link})"


def _publish_pool(
    name: str, place: Layout, axes: tuple[str, str, int], class_names: Sequence[str]
) -> None:
    from prefect.artifacts import create_image_artifact

    from kdci.reporting.figures.images import substitutes
    from kdci.reporting.figures.style import drawing, png
    from kdci.reporting.gather import pool_view

    pool = pool_view(place, *axes)
    with drawing():
        image = base64.b64encode(png(substitutes(pool, class_names))).decode()
    create_image_artifact(
        key=_key("pool", name),
        image_url=f"data:image/png;base64,{image}",
        description=f"Substitution images of {name}: {len(pool.images)} in all, "
        f"{100 * pool.total_variation:.0f} % of them would have to change class to balance it",
    )


def _publish_dictionary(
    name: str, place: Layout, axes: tuple[str, str, int], class_names: Sequence[str]
) -> None:
    from prefect.artifacts import create_table_artifact

    from kdci.reporting.gather import dictionary_view

    view = dictionary_view(place, *axes)
    order = sorted(range(len(view.proportions)), key=lambda i: -view.proportions[i])
    table = [
        {
            "prototype": i,
            "P(z), %": round(100 * float(view.proportions[i]), 2),
            "top class": class_names[view.facts["top_class"][i]],
        }
        for i in order
    ]
    create_table_artifact(
        key=_key("dictionary", name),
        table=table,
        description=f"Confounder dictionary of {name}: N = {len(table)} prototypes in "
        f"{view.facts['space']}, of {view.facts['num_predictions']} predictions",
    )


def _key(kind: str, name: str) -> str:
    """Return an artifact's key: Prefect takes lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"kdci-{kind}-{name}".lower()).strip("-")
