"""Report: from every artifact of the grid to ``report/``: results, ledger, metrics, figures.

Everything is made in memory first and each file is then put in place whole, so an error
leaves the report of the last run as it was.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdci.config.params import Params
from kdci.reporting.comparison import compare, compare_arms, has_further_arms, metrics_tree
from kdci.reporting.evidence import CurvePoint, Evidence
from kdci.reporting.gather import gather
from kdci.reporting.published.ledger import ledger
from kdci.reporting.results import measure_of
from kdci.reporting.text.markdown import report_text
from kdci.store.artifacts import replace_file, storage_errors
from kdci.store.layout import Layout, all_cells
from stages.main import main
from stages.session import Session

if TYPE_CHECKING:
    from kdci.reporting.figures.drawing import DrawnFigure


def report(params: Params, layout: Layout) -> None:
    """Write the report of what has been evaluated of the params' grid.

    Raises:
        IntegrityError: An artifact is damaged or was changed.
        StorageError: The report can not be written.
    """
    for leftover in layout.report.rglob(".*.tmp"):  # of a report that was killed
        leftover.unlink(missing_ok=True)
    grid = params.grid
    wanted = list(all_cells(grid))
    evidence = gather(layout, wanted, spec=params.data.spec, shifts=grid.shifts)
    # matplotlib takes its time: not before something is there to be drawn.
    from kdci.reporting.figures.drawing import draw_figures

    figures = draw_figures(evidence)
    metrics = _metrics(evidence)
    accuracies = {name: facts["accuracy"] for name, facts in evidence.teachers.items()}
    known = {name: value for name, value in accuracies.items() if value is not None}
    if known:
        metrics["teacher"] = known
    files = {
        "results.json": _json([asdict(row) for row in evidence.rows]),
        "ledger.json": _json([line.as_json() for line in ledger(evidence)]),
        "metrics.json": _json(metrics),
        "curves.csv": _csv(evidence.points),
        "report.md": report_text(evidence, figures).encode(),
    }
    _write_figures(layout.report / "figures", figures)
    for name, data in files.items():
        replace_file(layout.report / name, data)


def _metrics(evidence: Evidence) -> dict[str, Any]:
    """Return means of methods and known shifts, and what each arm gains on them."""
    measure = measure_of(evidence.rows)
    methods, shifts = evidence.method_rows, evidence.shift_rows
    arms = compare_arms(methods, measure) if has_further_arms(methods) else []
    arms += compare_arms(shifts, measure, over_methods=False)
    tree = metrics_tree([*compare(evidence.rows, evidence.keys), *compare(shifts)], arms)
    budgets = evidence.budgets
    return {"budget": budgets[0], **tree} if len(budgets) == 1 and budgets != [1.0] else tree


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _csv(points: Sequence[CurvePoint]) -> bytes:
    """Return the learning curves in long form, for `dvc plots`."""
    text = io.StringIO(newline="")
    names = [field.name for field in fields(CurvePoint)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(point) for point in points)
    return text.getvalue().encode()


def _write_figures(folder: Path, figures: Sequence[DrawnFigure]) -> None:
    """Write the figures, then remove those of an earlier report that are no longer drawn."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        replace_file(folder / figure.name, figure.png)
    current = {figure.name for figure in figures}
    with storage_errors(folder):
        for file in folder.glob("*.png"):
            if file.name not in current:
                file.unlink()


def run(session: Session) -> None:
    """Write the report of the running stage's params."""
    report(session.params, session.layout)


if __name__ == "__main__":
    sys.exit(main("report", run))
