"""The search for the best setting of KDCI: one factor at a time, then finalists on all methods.

    python -m studies.settings --root PROJECT --pools dafl cmi deepinv mosaick --settings kdci ...
    python -m studies.settings --out studies/settings.jsonl --table

PROJECT is a checkout whose params.yaml is studies/settings.yaml and whose `dvc repro substitute`
has run: each replicate is one of its `grid.pool_seeds`, with a pool, an initial student and an
order of batches of its own. A line of the output is one student, scored on the test split at its
last step; a rerun goes on where the last one ended. `--table` prints mean paired differences to
vanilla with 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from kdci.config.params_file import load_params
from kdci.reporting.statistics import estimate
from kdci.reporting.text.wording import difference_text
from kdci.store.layout import Layout
from kdci.store.revision import code_revision
from kdci.training.runtime import start
from studies.workbench import Setting, Shift, Workbench, plain, read_rows

LONG_TAIL = Shift(num_images=900, imbalance=100.0)


def kdci(**changes: Any) -> Setting:
    """Return the paper's KDCI as it is implemented, with changes."""
    fields = {k: changes.pop(k) for k in list(changes) if k in Setting.__dataclass_fields__}
    return Setting(compensate=True, options=changes, **fields)


RESIDUAL = {"space": "features", "fusion": "residual", "scale": "N"}
STRATA: dict[str, Any] = {"strata": "classes", "max_repeats": 10.0, "drawn": True}
FACTORS: dict[str, Setting] = {
    "vanilla": Setting(),
    "kdci": kdci(),
    # fusion and space
    "residual": kdci(fusion="residual"),
    "linear": kdci(fusion="linear"),
    "probabilities, residual": kdci(space="probabilities", fusion="residual"),
    "features, residual": kdci(space="features", fusion="residual"),
    # scale
    "scale 3": kdci(scale=3.0),
    "scale N": kdci(scale="N"),
    "scale shift": kdci(scale="shift"),
    "residual, scale N": kdci(fusion="residual", scale="N"),
    "features, residual, scale N": kdci(**RESIDUAL),
    "features, residual, scale shift": kdci(**{**RESIDUAL, "scale": "shift"}),
    # N
    "N = 5": kdci(num_prototypes=5),
    "N = 20": kdci(num_prototypes=20),
    "N = 50": kdci(num_prototypes=50),
    "features, residual, scale N, N = 50": kdci(**RESIDUAL, num_prototypes=50),
    # proportions
    "centred, scale N": kdci(proportions="centred", scale="N"),
    "features, residual, scale N, centred": kdci(**RESIDUAL, proportions="centred"),
    # initialisation and learning rate of the module
    "zero": kdci(initialisation="zero"),
    "features, residual, scale N, zero": kdci(**RESIDUAL, initialisation="zero"),
    "module rate x 0.1": kdci(rate=0.1),
    "features, residual, scale N, module rate x 0.1": kdci(**RESIDUAL, rate=0.1),
    "module rate x 3": kdci(rate=3.0),
    # dictionary built anew as the pool grows
    "rebuilt at 2 %": kdci(rebuild=0.02),
    # the ablations of Table 4
    "random lambda": kdci(weights="random"),
    "random z": kdci(prototypes="random"),
    "without P(z)": kdci(proportions="none"),
    # sampling, and what it is measured against
    "class strata": Setting(strata="classes"),
    "class strata, at most 10 x": Setting(strata="classes", max_repeats=10.0),
    "prototype strata": Setting(strata="prototypes"),
    "prototype strata, N = 50": Setting(strata="prototypes", num_prototypes=50),
    "logit adjustment": Setting(tau=1.0),
    "kdci, class strata": kdci(strata="classes"),
    "kdci, class strata, at most 10 x": kdci(strata="classes", max_repeats=10.0),
    "kdci, prototype strata": kdci(strata="prototypes"),
    "features, residual, scale N, class strata": kdci(**RESIDUAL, strata="classes"),
    # second round: what the first one suggested
    "module rate x 10": kdci(rate=10.0),
    "scale shift, module rate x 3": kdci(scale="shift", rate=3.0),
    "log": kdci(proportions="log"),
    "log, zero": kdci(proportions="log", initialisation="zero"),
    "log, module rate x 3": kdci(proportions="log", rate=3.0),
    "log, scale 2": kdci(proportions="log", scale=2.0),
    "class strata, at most 5 x": Setting(strata="classes", max_repeats=5.0),
    "class strata, at most 20 x": Setting(strata="classes", max_repeats=20.0),
    "log, zero, module rate x 0.01": kdci(proportions="log", initialisation="zero", rate=0.01),
    "kdci, class strata, at most 20 x": kdci(strata="classes", max_repeats=20.0),
    "scale shift, class strata": kdci(scale="shift", strata="classes"),
    "scale shift, class strata, at most 20 x": kdci(
        scale="shift", strata="classes", max_repeats=20.0
    ),
    "kdci, class strata, at most 10 x, drawn": kdci(**STRATA),
    "kdci, class strata, at most 20 x, drawn": kdci(**{**STRATA, "max_repeats": 20.0}),
    "scale shift, class strata, at most 10 x, drawn": kdci(scale="shift", **STRATA),
    "log, class strata, at most 10 x": kdci(proportions="log", strata="classes", max_repeats=10.0),
    "log, class strata, at most 10 x, drawn": kdci(proportions="log", **STRATA),
}
POOLS: dict[str, tuple[str, Shift | None]] = {
    "long tail": ("fast", LONG_TAIL),
    "fast": ("fast", None),
    "dfnd": ("dfnd", None),
}
"""One pool shifted in a known way, one balanced, one shifted in quality and proportions."""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("studies/settings.jsonl"))
    parser.add_argument("--pools", nargs="*", default=list(POOLS))
    parser.add_argument("--settings", nargs="*", choices=list(FACTORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments)
    sys.stdout.write(table(read_rows(arguments.out)) + "\n")


def run(arguments: argparse.Namespace) -> None:
    """Distil what the output does not hold yet."""
    root = arguments.root.resolve()
    params = load_params(root / "params.yaml")
    layout = Layout(root, params.preset)
    runtime = start(
        device=params.runtime.device,
        threads=arguments.threads,
        precision=params.runtime.precision,
    )
    revision = code_revision()
    done = {_key(row) for row in read_rows(arguments.out)}
    for pool_seed in params.grid.pool_seeds:
        for pool in arguments.pools:
            method, shift = POOLS.get(pool, (pool, None))
            bench: Workbench | None = None
            for name in arguments.settings or FACTORS:
                row = {
                    "preset": params.preset,
                    "pool": pool,
                    "replicate": pool_seed,
                    "setting": name,
                    "num_steps": params.recipe(method).num_steps,
                    "fields": dict(plain(FACTORS[name])),
                    "shift": dict(plain(shift)) if shift else None,
                }
                if _key(row) in done:
                    continue
                bench = bench or Workbench(
                    params, layout, method=method, pool_seed=pool_seed, runtime=runtime, shift=shift
                )
                began = time.monotonic()
                row |= bench.distil(FACTORS[name], 0)
                row |= {"seconds": round(time.monotonic() - began, 1), "revision": revision}
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def _key(row: Mapping[str, Any]) -> str:
    """Return what a student is known by: an edited setting is another one."""
    names = ("preset", "pool", "replicate", "setting", "num_steps", "fields", "shift")
    return json.dumps({name: row[name] for name in names}, sort_keys=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Return mean paired differences to vanilla with 95 % t-intervals, a line a setting."""
    vanilla = {
        (r["preset"], r["pool"], r["replicate"]): r["backbone"]
        for r in rows
        if r["setting"] == "vanilla"
    }
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if (row["preset"], row["pool"], row["replicate"]) in vanilla:
            groups[row["preset"], row["pool"], row["setting"]].append(row)
    lines = [
        "| preset | pool | setting | n | backbone | backbone - vanilla | compensated - vanilla |",
        "|---|---|---|---|---|---|---|",
    ]
    for (preset, pool, name), group in sorted(groups.items(), key=_order):
        cells = [f"{mean(r['backbone'] for r in group):.1f}"]
        for score in ("backbone", "compensated"):
            known = [r[score] - vanilla[preset, pool, r["replicate"]] for r in group if score in r]
            empty = name == "vanilla" or not known
            cells.append("" if empty else difference_text(estimate(known)))
        lines.append(f"| {preset} | {pool} | {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(item: tuple[tuple[str, str, str], Any]) -> tuple[str, str, int]:
    preset, pool, name = item[0]
    return preset, pool, list(FACTORS).index(name) if name in FACTORS else len(FACTORS)


if __name__ == "__main__":
    main()
