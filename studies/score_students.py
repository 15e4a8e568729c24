"""Scores whichever students of an experiment are there, snapshot by snapshot.

    python -m studies.score_students --root PROJECT --out FILE.jsonl --figure FILE.png

`evaluate` waits for both arms of a method; this looks at what has been distilled so far. A line
of the output is one snapshot; lines that are there already are not computed again. Accuracies
are of the backbone on the test split, in percent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.data.datasets.labelled import LabelledImages
from kdci.data.datasets.loading import load_split
from kdci.models.students import snapshot_of
from kdci.reporting.evidence import CurvePoint
from kdci.reporting.figures.curves import learning_curves
from kdci.reporting.figures.style import drawing, png
from kdci.store.artifacts import CARD, Artifact, open_artifact
from kdci.store.layout import Cell, Layout, all_cells
from kdci.training.evaluation import match_percentage, predict_logits
from kdci.training.runtime import start

BATCH = 512


def main() -> None:
    """Score, then draw all that is in the output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines")
    parser.add_argument("--figure", type=Path, help="learning curves, PNG")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    done = {row["cell"] for row in _read(arguments.out)}
    for cell in all_cells(params.grid):
        folder = layout.student(cell)
        if cell.name in done or not (folder / CARD).is_file():
            continue
        with arguments.out.open("a", encoding="utf-8") as out:
            for row in _score(params, layout, cell, open_artifact(folder, kind="student")):
                out.write(json.dumps(row) + "\n")
        print(f"scored {cell.name}", flush=True)  # noqa: T201
    if arguments.figure:
        _draw(_read(arguments.out), layout, arguments.figure)


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _score(params: Params, layout: Layout, cell: Cell, artifact: Artifact) -> list[dict[str, Any]]:
    """Return a row for every snapshot of a student."""
    runtime = start(
        device=params.runtime.device,
        threads=params.runtime.threads,
        precision=params.runtime.precision,
    )
    test = _test_split(params, layout)
    seconds = json.loads(layout.timing(layout.student(cell)).read_text(encoding="utf-8"))
    rows = []
    for step, name in artifact.facts["snapshots"]:
        student = snapshot_of(artifact, name).to(runtime.device)
        student.backbone.autocast_dtype = runtime.format.autocast_dtype
        student.deploy = "backbone"
        logits = predict_logits(student, test.images, batch_size=BATCH, device=runtime.device)
        row = {"cell": cell.name, "method": cell.method, "variant": cell.variant, "step": step}
        row["accuracy"] = round(match_percentage(logits.argmax(dim=1), test.labels), 2)
        row["batch_size"] = artifact.facts["batch_size"]
        row["seconds"] = round(seconds["loop_seconds"], 1)
        row["revision"] = artifact.card["code"].get("revision")
        rows.append(row)
    return rows


def _test_split(params: Params, layout: Layout) -> LabelledImages:
    path = None if params.data.path is None else layout.root / params.data.path
    return load_split(params.data.spec, path=path, split="test")


def _draw(rows: list[dict[str, Any]], layout: Layout, file: Path) -> None:
    points = []
    for row in rows:
        teacher, student, method, variant, replicate = row["cell"].split("/")
        series = "vanilla" if variant == "vanilla" else "kdci backbone"
        points.append(
            CurvePoint(
                step=row["step"],
                accuracy=row["accuracy"],
                agreement=None,
                method=method,
                variant=series,
                teacher=teacher,
                student=student,
                replicate=replicate,
            )
        )
    facts = open_artifact(layout.teacher(points[0].teacher), kind="teacher").facts
    with drawing():
        figure = learning_curves(
            points, measure="accuracy", deploy="backbone", teacher_accuracy=facts["accuracy"]
        )
        file.write_bytes(png(figure))


if __name__ == "__main__":
    main()
