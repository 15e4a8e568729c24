"""Writes the tables of docs/evidence.md from the results that are kept beside the code.

    python -m studies.evidence          # after `python -m studies.keep`, or a study

A block between `<!-- NAME -->` and `<!-- end -->` is replaced by the table of that name; a test
holds the page to the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from kdci.deconfounding.arms import arm_title
from kdci.reporting.comparison import compare_arms, compare_shifts
from kdci.reporting.results import Quantity, Row
from kdci.reporting.statistics import (
    by_replicate,
    estimate,
    minus,
    paired_t_test,
    pooled_differences,
)
from kdci.reporting.text.tables import arm_cells, markdown, shift_cells
from kdci.reporting.text.wording import (
    difference_text,
    is_shift,
    mean_text,
    number,
    p_text,
)
from kdci.substitution.registry import title_of
from studies.keep import RESULTS
from studies.workbench import read_rows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence.md"
STUDY = Path(__file__).with_name("settings.jsonl")
_MEASURES: tuple[tuple[str, Quantity, float], ...] = (
    ("marginal bias, %", "marginal_bias", 100.0),
    ("calibration error, %", "calibration_error", 1.0),
)


def main() -> None:
    """Replace every table of the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def filled(page: str) -> str:
    """Return the page with its tables as the results have them."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if start in page:
            before, rest = page.split(start, 1)
            _, after = rest.split(end, 1)
            page = f"{before}{start}\n{make()}\n{end}{after}"
    return page


def kept(preset: str) -> dict[str, Any]:
    """Return the kept results of a preset."""
    found: dict[str, Any] = json.loads((RESULTS / f"{preset}.json").read_text(encoding="utf-8"))
    return found


def rows_of(preset: str, *, shifts: bool) -> list[Row]:
    """Return a preset's rows: those of its methods, or of its pools with a known shift."""
    rows = [Row.from_json(values) for values in kept(preset)["rows"]]
    return [row for row in rows if is_shift(row.method) == shifts]


def arms(preset: str) -> str:
    """Return the table of all arms of a preset's methods."""
    rows = rows_of(preset, shifts=False)
    vanilla = {
        method: estimate(list(by_replicate(own, "accuracy", "backbone").values()))
        for method in dict.fromkeys(row.method for row in rows)
        if (own := [r for r in rows if r.method == method and r.variant == "vanilla"])
    }
    head, *lines = arm_cells(compare_arms(rows, "accuracy"))
    titles = {title_of(method): mean_text(known) for method, known in vanilla.items()}
    body = [[line[0], titles.get(line[0], "-"), *line[1:]] for line in lines]
    return markdown([[head[0], "vanilla", *head[1:]], *body], num_names=1)


def shifts(preset: str) -> str:
    """Return the table of a preset's pools with a known shift."""
    return markdown(shift_cells(compare_shifts(rows_of(preset, shifts=True), "accuracy")))


def students(preset: str) -> str:
    """Return what shift is left in the students: bias of their class marginal, calibration."""
    rows = [*rows_of(preset, shifts=False), *rows_of(preset, shifts=True)]
    lines = [["pool", "arm", *(title for name, *_ in _MEASURES for title in (name, "change"))]]
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        for arm in dict.fromkeys(row.variant for row in own):
            of_arm = [row for row in own if row.variant == arm]
            cells = [title_of(method), arm_title(arm)]
            for _, quantity, scale in _MEASURES:
                after = by_replicate(of_arm, quantity, of_arm[0].deployed)
                plain = [row for row in own if row.variant == "vanilla"]
                before = by_replicate(plain, quantity, "backbone")
                changes = estimate([scale * one for one in minus(after, before).values()])
                cells.append(mean_text(estimate([scale * one for one in after.values()])))
                cells.append("-" if arm == "vanilla" else difference_text(changes))
            lines.append(cells)
    return markdown(lines, num_names=2)


def pools(preset: str) -> str:
    """Return how far each kind of pool is shifted, means over replicates."""
    found = kept(preset)["pools"]
    lines = [["pool", "total variation", "entropy, nats", "confidence, %", "teacher-FID", "n"]]
    for method in dict.fromkeys(pool["method"] for pool in found):
        own = [pool for pool in found if pool["method"] == method]
        values = {
            name: estimate([pool[name] for pool in own])
            for name in ("total_variation", "entropy", "confidence", "teacher_fid")
        }
        means = {name: known.mean for name, known in values.items() if known}
        lines.append(
            [
                title_of(method),
                number(means["total_variation"], 2),
                number(means["entropy"], 2),
                number(100 * means["confidence"]),
                number(means["teacher_fid"]),
                str(len(own)),
            ]
        )
    return markdown(lines)


def by_shift(preset: str) -> str:
    """Return each arm's gain over the pools that are balanced, and over the strongly shifted ones.

    Within a replicate the differences are averaged over the pools of a group first.
    """
    rows = [*rows_of(preset, shifts=False), *rows_of(preset, shifts=True)]
    found = kept(preset)["pools"]
    distances = {
        method: [
            mean(pool[name] for pool in found if pool["method"] == method)
            for name in ("total_variation", "teacher_fid")
        ]
        for method in dict.fromkeys(pool["method"] for pool in found)
    }
    results = compare_arms(rows, "accuracy", over_methods=False)
    lines = [["pools", "arm", "paired difference", "p", "n"]]
    for title, inside in _GROUPS.items():
        pools_in = [method for method, known in distances.items() if inside(*known)]
        for arm in dict.fromkeys(one.arm for one in results):
            own = [one for one in results if one.arm == arm and one.method in pools_in]
            paired = list(pooled_differences([one.paired for one in own if one.paired]).values())
            if paired:
                names = ", ".join(title_of(str(one.method)) for one in own if one.paired)
                shown = difference_text(estimate(paired))
                p = p_text(paired_t_test(paired))
                lines.append([f"{title}: {names}", arm_title(arm), shown, p, str(len(paired))])
    return markdown(lines, num_names=2)


_GROUPS: dict[str, Callable[[float, float], bool]] = {
    "balanced (total variation below 0.1)": lambda tv, fid: tv < 0.1,
    "balanced and near the data (teacher-FID below 5 too)": lambda tv, fid: tv < 0.1 and fid < 5,
    "strongly shifted (total variation 0.4 and more)": lambda tv, fid: tv >= 0.4,
}
"""Pools by how far their proportions are from even, and their images from real ones."""


def mcnemar(preset: str) -> str:
    """Return McNemar's tests in short: in how many pairs of students who was shown better."""
    tests = kept(preset)["mcnemar"]
    lines = [["pool", "arm", "pairs", "p < 0.05, arm better", "p < 0.05, vanilla better", "b / c"]]
    for method, arm in dict.fromkeys((test["method"], test["variant"]) for test in tests):
        own = [test for test in tests if (test["method"], test["variant"]) == (method, arm)]
        shown = [test for test in own if test["p"] < 0.05]
        better = sum(test["gained"] > test["lost"] for test in shown)
        counts = ", ".join(f"{test['lost']}/{test['gained']}" for test in own)
        names = [title_of(method), arm_title(arm)]
        lines.append([*names, str(len(own)), str(better), str(len(shown) - better), counts])
    return markdown(lines, num_names=2)


def source(preset: str) -> str:
    """Return where a preset's numbers come from, in one paragraph."""
    found = kept(preset)
    runtimes = [json.loads(text) for text in found["runtime"]]
    precision = ", ".join(dict.fromkeys(str(one["precision"]) for one in runtimes))
    threads = ", ".join(dict.fromkeys(str(one["threads"]) for one in runtimes))
    budgets = "; ".join(dict.fromkeys(found["budgets"].values()))
    teachers = ", ".join(f"{name} {number(known)} %" for name, known in found["teachers"].items())
    revisions = ", ".join(revision[:7] for revision in found["revisions"])
    missing = f" Not run: {len(found['not_run'])} students." if found["not_run"] else ""
    lossy = " **Measured on a lossy copy of CIFAR-10; to be measured again.**"
    label = lossy if preset in OF_LOSSY_IMAGES else ""
    return (
        f"`{found['command']}`: {len(found['rows'])} students, {budgets}; teacher {teachers}; "
        f"{found['hardware']}, {precision}, threads {threads}; "
        f"{found['stage_seconds'] / 60:.0f} minutes of stages; commit {revisions}.{missing} "
        f"Raw rows: [studies/results/{preset}.json](../studies/results/{preset}.json).{label}"
    )


def settings(pools: Sequence[str]) -> str:
    """Return the search for a setting: each one's paired difference to vanilla, a column a pool."""
    rows = [row for row in read_rows(STUDY) if row["pool"] in pools]
    found = {(row["pool"], row["setting"], row["replicate"]): row for row in rows}
    lines = [["setting", *(f"{pool}: backbone" for pool in pools)]]
    lines[0] += [f"{pool}: compensated" for pool in pools]
    for setting in dict.fromkeys(row["setting"] for row in rows):
        cells = [
            _difference(found, pool, setting, part)
            for part in ("backbone", "compensated")
            for pool in pools
        ]
        lines.append([setting, *cells])
    return markdown(lines)


def _difference(found: dict[Any, dict[str, Any]], pool: str, setting: str, part: str) -> str:
    """Return a setting's paired difference to vanilla; of vanilla itself its mean."""
    values = {key[2]: row for key, row in found.items() if key[:2] == (pool, setting)}
    if setting == "vanilla":
        known = [row[part] for row in values.values() if part in row]
        return mean_text(estimate(known)) if known else ""
    differences = [
        row[part] - found[pool, "vanilla", replicate]["backbone"]
        for replicate, row in values.items()
        if part in row
    ]
    return difference_text(estimate(differences)) if differences else ""


PRESETS = ("digits-study", "table4-digits", "table5-digits", "shift-digits", "shift-cifar10")
OF_LOSSY_IMAGES = frozenset({"shift-cifar10"})
"""Presets whose kept results are of a lossy copy of the dataset: to be measured again."""
TABLES: dict[str, Callable[[], str]] = {
    "settings": lambda: settings(("long tail", "dfnd", "fast")),
    "finalists": lambda: settings(("dafl", "cmi", "deepinv", "mosaick")),
}
for _preset in PRESETS:
    for _make in (arms, shifts, by_shift, students, pools, mcnemar, source):
        TABLES[f"{_preset}: {_make.__name__}"] = lambda p=_preset, make=_make: make(p)

if __name__ == "__main__":
    main()
