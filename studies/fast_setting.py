"""Does speed cost accuracy? The same students in fp32 contiguous, nothing folded, and as they come.

    python -m studies.fast_setting --preset digits --root FOLDER
    python -m studies.fast_setting --preset cifar10-cpu --data DATA --root FOLDER

Each setting has a workspace of its own below the folder; what is finished there is not computed
again. Vanilla students, the last step, the test split; rows and table go into
`studies/results/fast-setting/PRESET.json` and to the screen; `python -m benchmarks.page` puts the
table into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdci.config.params_file import load_params
from kdci.data.datasets.loading import load_split
from kdci.graph.build import graph_of
from kdci.models.students import student_of
from kdci.reporting.statistics import estimate
from kdci.store.artifacts import CARD, open_artifact
from kdci.store.layout import Cell, Layout, cells
from kdci.store.revision import code_revision
from kdci.training.evaluation import match_percentage, predict_logits
from kdci.training.runtime import processor, start
from pipelines.params.edit import with_values
from pipelines.params.presets import preset_text

RESULTS = Path(__file__).parent / "results" / "fast-setting"
BATCH = 512
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32 contiguous": {
        "runtime.precision": "fp32",
        "runtime.memory_format": "contiguous",
        "runtime.fold_teacher": False,
    },
    "as it comes": {},
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"methods": ["fast", "dfnd"], "seeds": 5},
    "cifar10-cpu": {"methods": ["fast"], "seeds": 3},
}


def main() -> None:
    """Compute what is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(DEFAULTS), required=True)
    parser.add_argument("--root", type=Path, required=True, help="where the workspaces lie")
    parser.add_argument("--data", type=Path, help="folder of the datasets, where one is needed")
    parser.add_argument("--teacher", type=Path, help="a finished teacher to adopt")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows = []
    for setting, values in SETTINGS.items():
        root = arguments.root.resolve() / arguments.preset / setting.replace(" ", "-")
        _write_params(root, arguments, values)
        _distil(root)
        rows += _score(root, setting)
    table = _table(rows)
    record = {
        "preset": arguments.preset,
        "processor": processor(),
        "revision": code_revision(),
        "rows": rows,
        "table": table,
    }
    file = RESULTS / f"{arguments.preset}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for line in table:
        print(line)  # noqa: T201


def _write_params(root: Path, arguments: argparse.Namespace, values: Mapping[str, Any]) -> None:
    defaults = DEFAULTS[arguments.preset]
    data = None if arguments.data is None else str(arguments.data.resolve())
    edits: dict[str, Any] = {
        "grid.methods": defaults["methods"],
        "grid.controls": [],
        "grid.seeds": list(range(defaults["seeds"])),
        "runtime.threads": arguments.threads,
        **values,
    }
    if arguments.teacher is not None:
        edits["teacher.artifact"] = str(arguments.teacher.resolve())
    root.mkdir(parents=True, exist_ok=True)
    text = with_values(preset_text(arguments.preset, data=data), edits)
    (root / "params.yaml").write_text(text, encoding="utf-8")


def _distil(root: Path) -> None:
    """Run the stages whose results are not there yet, each a process as the pipeline has it."""
    graph = graph_of(load_params(root / "params.yaml"), root)
    students = [node for node in graph.of_stage("distill") if node.point["variant"] == "vanilla"]
    for node in (*graph.of_stage("teacher"), *graph.of_stage("substitute"), *students):
        if not (node.artifact / CARD).is_file():
            command = [sys.executable, "-m", f"stages.{node.stage}", node.cell]
            subprocess.run([*command, "--params", str(root / "params.yaml")], check=True)  # noqa: S603


def _vanilla(root: Path) -> list[Cell]:
    params = load_params(root / "params.yaml")
    return [cell for cell in cells(params.grid) if cell.variant == "vanilla"]


def _score(root: Path, setting: str) -> list[dict[str, Any]]:
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    runtime = start(device="cpu", threads=params.runtime.threads, precision="fp32")
    path = Path(params.data.path) if params.data.path else None
    test = load_split(params.data.spec, path=path, split="test")
    rows = []
    for cell in _vanilla(root):
        artifact = open_artifact(layout.student(cell), kind="student")
        timing = json.loads(layout.timing(artifact.path).read_text(encoding="utf-8"))
        student = student_of(artifact)
        student.deploy = "backbone"
        logits = predict_logits(student, test.images, batch_size=BATCH, device=runtime.device)
        rows.append(
            {
                "setting": setting,
                "method": cell.method,
                "seed": cell.seed,
                "accuracy": round(match_percentage(logits.argmax(dim=1), test.labels), 2),
                "num_steps": artifact.facts["num_steps"],
                "seconds": round(timing["loop_seconds"], 1),
                "formats": artifact.card["runtime"]["formats"],
                "threads": artifact.card["runtime"]["threads"],
                "code": artifact.card["code"]["hash"][:12],
            }
        )
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return Markdown: accuracy of both settings with its interval, and their difference's."""
    lines = [
        "| method | n | fp32 contiguous | as it comes | paired difference (95 %) |",
        "|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        plain, fast = (
            {r["seed"]: r["accuracy"] for r in rows if (r["method"], r["setting"]) == (method, s)}
            for s in SETTINGS
        )
        values = [list(plain.values()), list(fast.values()), [fast[s] - plain[s] for s in plain]]
        shown = [_interval(one) for one in values]
        lines.append(f"| {method} | {len(plain)} | {' | '.join(shown)} |")
    return lines


def _interval(values: Sequence[float]) -> str:
    found = estimate(values)
    assert found is not None
    if found.half_width is None:
        return f"{found.mean:.1f}"
    return f"{found.mean:.1f} \N{PLUS-MINUS SIGN} {found.half_width:.1f}"


if __name__ == "__main__":
    main()
