"""The tables of hyper-parameters in docs/methods.md, from the code's values and the preset's.

Run from the project folder:

    python -m studies.methods_table            # tell whether the page is up to date
    python -m studies.methods_table --write    # rewrite its tables in place

A table stands between ``<!-- table: METHOD -->`` and ``<!-- end -->``. Paper scale comes from
``studies.published``, the digits column from the preset, the rest from ``studies.paper_values``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from kdci.config.params import StudentRecipe
from kdci.config.params_file import read_yaml
from kdci.substitution.block import MethodBlock
from studies.paper_values import PAPER_VALUES
from studies.published import BLOCKS, Setting, published_settings
from studies.published_rows import PAIRS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods.md"
PRESET = ROOT / "pipelines" / "presets" / "digits.yaml"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
COLUMNS = (
    ("CIFAR", ("cifar10", "cifar100")),
    ("Tiny-ImageNet", ("tiny-imagenet",)),
    ("ImageNet", ("imagenet",)),
)
HEAD = ("parameter", "paper / public code", *(name for name, _ in COLUMNS), "digits", "where from")
UNTOLD = {"open_world", "recipe.momentum", "by_teacher", "by_student"}
"""Parameters without a line: nested blocks, and one that is 0.9 everywhere."""


def values_of(block: MethodBlock | None, recipe: StudentRecipe | None) -> dict[str, Any]:
    """Return the values by parameter, the recipe's as ``recipe.NAME``; without a block, none."""
    values = {} if block is None else block.model_dump(mode="json")
    if recipe is not None:
        values |= {f"recipe.{name}": value for name, value in recipe.model_dump().items()}
    return {name: value for name, value in values.items() if name not in UNTOLD}


def preset_values(preset: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return what a preset says of a method, defaults filled in; {} if it leaves it out."""
    block, recipe = ((preset.get(key) or {}).get(method) for key in ("methods", "recipes"))
    return values_of(
        None if block is None else BLOCKS[method].model_validate(block),
        None if recipe is None else StudentRecipe.model_validate(recipe),
    )


def show(value: Any) -> str:
    """Return a value as the table shows it: `16,000`, `1e-4`, `yes`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _scientific(value) if 0 < value < 1e-3 else f"{value:g}"
    return str(value)


def _scientific(value: float) -> str:
    """Return a small number as in 2e-4."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def cell(settings: Sequence[Setting], datasets: Sequence[str], parameter: str) -> str:
    """Return the published value for some datasets; where pairs differ, one for each in order."""
    by_pair = {
        (setting.teacher, setting.student): show(
            values_of(setting.block, setting.recipe)[parameter]
        )
        for setting in settings
        if setting.dataset in datasets
    }
    values = list(by_pair.values())
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def sources(settings: Sequence[Setting]) -> Iterator[str]:
    """Yield a line for each provenance: which datasets and pairs, and what it says."""
    by_text: dict[str, list[Setting]] = {}
    for setting in settings:
        by_text.setdefault(setting.provenance, []).append(setting)
    for text, group in by_text.items():
        names = []
        for dataset, members in groupby(group, key=lambda setting: setting.dataset):
            pairs = [f"{setting.teacher} -> {setting.student}" for setting in members]
            whole = len(pairs) == len(PAIRS[dataset])
            names.append(dataset if whole else f"{dataset} ({', '.join(pairs)})")
        yield f"- {', '.join(names)}: {text}."


def table(method: str, preset: Mapping[str, Any]) -> str:
    """Return a method's table, with a list of where its settings come from below."""
    settings = [setting for setting in published_settings() if setting.method == method]
    digits = preset_values(preset, method)
    rows = [HEAD, ("---",) * len(HEAD)]
    for parameter in values_of(settings[0].block, settings[0].recipe):
        paper, source = PAPER_VALUES[method][parameter]
        ours = [cell(settings, datasets, parameter) for _, datasets in COLUMNS]
        shown = show(digits[parameter]) if parameter in digits else "-"
        rows.append((f"`{parameter}`", paper, *ours, shown, source))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *sources(settings)]) + "\n"


def render(page: str, preset: Mapping[str, Any]) -> str:
    """Return the page with its tables made anew."""
    return TABLE.sub(lambda match: match[1] + table(match[2], preset) + match[3], page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write; return 1 if the page is out of date."""
    parser = argparse.ArgumentParser(description="Check the tables of docs/methods.md.")
    parser.add_argument("--write", action="store_true", help="rewrite them in place")
    write = parser.parse_args(arguments).write
    page = PAGE.read_text(encoding="utf-8")
    wanted = render(page, read_yaml(PRESET))
    if write:
        PAGE.write_text(wanted, encoding="utf-8")
    elif page != wanted:
        sys.stderr.write(
            "docs/methods.md is out of date: run `python -m studies.methods_table --write`\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
