"""Keeps the results of an experiment beside the code: what docs/evidence.md is made of.

    python -m studies.keep --root PROJECT [--figures 'arms-*.png' 'shifts-*.png']

PROJECT is a folder whose `dvc repro` has run. `studies/results/<preset>.json` receives every
student's row, how far the pools are shifted, McNemar's counts, and where it comes from: the
command, the revisions of the code, the hardware, the time it took. Figures of the report that match
a pattern go to `docs/images/evidence`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdci.config.params_file import load_params
from kdci.reporting.evidence import Evidence
from kdci.reporting.gather import gather
from kdci.reporting.text.sections import TESTED_ARMS
from kdci.store.artifacts import read_card
from kdci.store.layout import Layout, all_cells
from kdci.training.runtime import available_cores, processor

RESULTS = Path(__file__).with_name("results")
FIGURES = Path(__file__).resolve().parents[1] / "docs" / "images" / "evidence"


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the experiment's folder")
    parser.add_argument("--figures", nargs="*", default=["arms-*.png", "shifts-*.png"])
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    evidence = gather(
        layout, list(all_cells(params.grid)), spec=params.data.spec, shifts=params.grid.shifts
    )
    kept = {
        **provenance(layout, evidence, needs_data=not params.data.spec.bundled),
        **results(evidence),
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(_rounded(kept), indent=None, separators=(",", ":"), allow_nan=False)
    file = RESULTS / f"{params.preset}.json"
    file.write_text(text.replace('{"preset"', '\n{"preset"') + "\n", encoding="utf-8")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for pattern in arguments.figures:
        for figure in sorted((layout.report / "figures").glob(pattern)):
            shutil.copyfile(figure, FIGURES / f"{params.preset}-{figure.name}")
    print(f"{file}: {len(evidence.rows)} students, {len(evidence.not_run)} not run")  # noqa: T201


def provenance(layout: Layout, evidence: Evidence, *, needs_data: bool) -> dict[str, Any]:
    """Return where the numbers come from."""
    data = " --data DATA" if needs_data else ""
    command = f"kdci preset {layout.preset}{data} && dvc repro"
    cards = [*evidence.students.values(), *evidence.evaluation_cards]
    seconds = [
        json.loads(file.read_text(encoding="utf-8"))["seconds"]
        for file in (layout.root / "artifacts" / layout.preset).rglob("timings/**/*.json")
    ]
    budgets: dict[str, str] = {}
    for cell, card in evidence.students.items():
        facts = card["facts"]
        budgets[cell.method] = f"{facts['num_steps']:,} steps x {facts['batch_size']}"
    shifted = {f"{pool.method}/pool{pool.pool_seed}": len(pool.images) for pool in evidence.pools}
    return {
        "experiment": layout.preset,
        "command": command,
        "revisions": _distinct(card["code"].get("revision") for card in cards),
        "runtime": _distinct(json.dumps(card["runtime"], sort_keys=True) for card in cards),
        "versions": cards[0]["versions"] if cards else {},
        # Of this machine: kept where it was run.
        "hardware": f"{processor()}, {available_cores()} cores",
        "stage_seconds": sum(seconds),
        "budgets": budgets,
        "pool_images": shifted,
        "teachers": {
            name: read_card(layout.teacher(name), kind="teacher")["facts"]["accuracy"]
            for name in evidence.teachers
        },
    }


def results(evidence: Evidence) -> dict[str, Any]:
    """Return every student's row, the pools' shifts and McNemar's counts."""
    tests = []
    for cell in evidence.wanted:
        found = evidence.discordant(cell) if cell.variant in TESTED_ARMS else None
        if found is not None:
            tests.append({**cell.asdict(), **asdict(found)})
    return {
        "not_run": [cell.name for cell in evidence.not_run],
        "pools": [asdict(pool) for pool in evidence.pool_shifts],
        "mcnemar": tests,
        "rows": [asdict(row) for row in evidence.rows],
    }


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(value for value in values if value is not None))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
