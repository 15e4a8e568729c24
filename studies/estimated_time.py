"""Does the estimate hold? `kdci check --estimate` beside the real run of the same experiment.

    python -m studies.estimated_time --root FOLDER --threads 1

The six methods of a preset, one seed, in a new project below the folder; what is finished there is
not run again. Both times are of a stage's own work, without the start of its process, which the
estimate adds; the real one is what the stage wrote down. Rows go into
`studies/estimated_time.json`, the table into docs/estimate.md and to the screen.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdci.config.params_file import load_params
from kdci.graph.build import graph_of
from kdci.store.layout import Layout
from kdci.store.revision import code_revision
from pipelines.checking.estimating.estimate import Estimate, estimate
from pipelines.params.edit import with_values
from pipelines.params.new_project import new_project

RESULTS = Path(__file__).parent / "estimated_time.json"
PAGE = Path(__file__).parents[1] / "docs" / "estimate.md"
BLOCK = re.compile(r"(<!-- estimated_time -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = ("pool", "student", "evaluation")
"""Dictionaries are k-means for the most part, which is not counted."""


def main() -> None:
    """Estimate, run what is missing, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--root", type=Path, required=True, help="where the project lies")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=1.0)
    arguments = parser.parse_args()
    root = arguments.root.resolve() / f"{arguments.preset}-{arguments.threads}"
    kept = root / "estimated.json"
    if not kept.is_file():
        _make_project(root, arguments)
        kept.write_text(json.dumps(_estimated(root)), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=root, check=True)  # noqa: S603
    record = {
        "preset": arguments.preset,
        "budget": arguments.budget,
        "revision": code_revision(),
        **json.loads(kept.read_text(encoding="utf-8")),
        "real": _real(root),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    lines = list(table(record))
    text = PAGE.read_text(encoding="utf-8")
    filled = BLOCK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)
    PAGE.write_text(filled, encoding="utf-8")
    print("\n".join(lines))  # noqa: T201


def _make_project(root: Path, arguments: argparse.Namespace) -> None:
    new_project(root, preset=arguments.preset, data=None)
    edits = {
        "grid.seeds": [0],
        "grid.controls": [],
        "runtime.threads": arguments.threads,
        "budget": arguments.budget,
    }
    params = root / "params.yaml"
    params.write_text(with_values(params.read_text(encoding="utf-8"), edits), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "pipelines.cli", "check"], cwd=root, check=True)  # noqa: S603


def _estimated(root: Path) -> dict[str, Any]:
    params = load_params(root / "params.yaml")
    found: Estimate = estimate(params, Layout(root, params.preset), seconds=float("inf"))
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for need in found.stages:
        if need.seconds is not None:
            seconds[need.method or "teacher"][need.kind] += need.seconds - found.measured.start
    return {"hardware": found.measured.hardware, "estimated": seconds}


def _real(root: Path) -> dict[str, dict[str, float]]:
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for node in graph_of(load_params(root / "params.yaml"), root).makers:
        timing = json.loads(node.timing.read_text(encoding="utf-8"))
        seconds[str(node.point.get("method", "teacher"))][node.kind] += timing["seconds"]
    return seconds


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield Markdown: seconds estimated and real, by method and kind of stage."""
    yield "| method | pool | student | evaluation | in all | estimated / real |"
    yield "|---|---|---|---|---|---|"
    for method, real in record["real"].items():
        estimated = record["estimated"][method]
        kinds = ("teacher",) if method == "teacher" else KINDS
        cells = [f"{estimated[k]:.1f} / {real[k]:.1f}" if k in kinds else "-" for k in KINDS]
        sums = [sum(one[kind] for kind in kinds) for one in (estimated, real)]
        whole = f"{sums[0]:.1f} / {sums[1]:.1f}"
        yield f"| {method} | {' | '.join(cells)} | {whole} | {sums[0] / sums[1]:.2f} |"
    yield ""
    what = f"{record['preset']}, budget {record['budget']:g}, one seed, vanilla and KDCI"
    yield f"Seconds, estimated / real; n = 1; {what}; {record['hardware']}; commit"
    yield f"{record['revision'][:7]}. Again: `python -m studies.estimated_time --root FOLDER`."


if __name__ == "__main__":
    main()
