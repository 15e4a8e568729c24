"""Writes the tables of docs/performance.md from benchmarks/results.json.

    python -m benchmarks.page          # `python -m benchmarks` does it, too

What stands between `<!-- NAME -->` and `<!-- end -->` is replaced by what the results have of that
name; a test holds the page to them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.catalogue import MODULES
from benchmarks.claims import claims
from benchmarks.results import FILE, STEPS, Results, read

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BLOCK = re.compile(r"(<!-- ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = {
    "kd_step": ("student's step", "batch"),
    "inversion_step": ("step that makes images", "batch"),
    "dictionary_building": ("dictionary", "images"),
}
ACCURACIES = {"accuracy_digits": "digits", "accuracy_cifar": "cifar10-cpu"}
"""Presets that ``studies.fast_setting`` has compared, by the name of their block."""
STUDIES = PAGE.parents[1] / "studies" / "results" / "fast-setting"
NOT_RUN = "not run\n"


def filled(page: str, results: Results) -> str:
    """Return the page with its blocks as the results have them.

    Raises:
        ValueError: There is a block of no known name.
    """
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2], results)}{found[3]}", page)


def block(name: str, results: Results) -> str:
    """Return what stands in a block; ends with a new line.

    Raises:
        ValueError: There is no block of that name.
    """
    if name == "claims":
        return _table(("claim", "measured", "needed", ""), _claim_cells(results))
    if name in KINDS:
        return _steps(name, results)
    if name == "settings":
        return _settings(results)
    if name == "machines":
        return "".join(f"- {line}\n" for line in _machines(results)) or NOT_RUN
    if name == "compensation_cost":
        return _compensation(results.get(name, {}))
    if name in MODULES:
        return _lines(results.get(name, {}))
    if name in ACCURACIES:
        return _accuracies(ACCURACIES[name])
    raise ValueError(f"no block {name!r}")


def _claim_cells(results: Results) -> Iterator[tuple[str, ...]]:
    for claim in claims(results):
        sign = "at least" if claim.at_least else "at most"
        value = "" if claim.value is None else _quantity(claim.value, claim.unit)
        yield claim.name, value, f"{sign} {claim.limit:g} {claim.unit}".strip(), claim.verdict


def _quantity(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}".strip()


def _steps(kind: str, results: Results) -> str:
    cases = [
        case
        for key, case in results.get(STEPS, {}).items()
        if case["kind"] == kind and not settings_in(key)
    ]
    if not cases:
        return NOT_RUN
    title, size = KINDS[kind]
    ways = [way for way in _WAYS if any(way in case["ms"] for case in cases)]
    head = (
        title,
        size,
        "n",
        *(_WAYS[way] for way in ways),
        "times plain",
        "of the bound",
        "memory",
    )
    return _table(head, (_step_cells(case, ways) for case in cases))


def settings_in(key: str) -> str:
    """Return what a case's key says of settings other than the defaults; "" of the defaults."""
    return ", ".join(part for part in key.split("/") if "=" in part)


def _settings(results: Results) -> str:
    cases = [
        (settings_in(key), case) for key, case in results.get(STEPS, {}).items() if settings_in(key)
    ]
    rows = [
        (
            f"{case['kind'].replace('_', ' ')}, {_name(case)}",
            settings,
            str(case["n"]),
            f"{case['ms']['project']['median']:.0f}",
            _ratio(case, "times_plain", 1, "{:.2f}"),
            _ratio(case, "share_of_bound", 100, "{:.0f} %"),
        )
        for settings, case in cases
    ]
    head = ("work", "setting", "n", "kdci, ms", "times plain", "of the bound")
    return _table(head, rows) if rows else NOT_RUN


_WAYS = {
    "project": "kdci, ms",
    "compensated": "with KDCI, ms",
    "plain": "plain, ms",
    "bound": "bound, ms",
}


def _name(case: Mapping[str, Any]) -> str:
    pair = case["teacher"]
    if case["student"] is not None:
        pair = f"{pair} to {case['student']}"
    return ", ".join(part for part in (case["method"], pair, case["note"]) if part)


def _step_cells(case: Mapping[str, Any], ways: list[str]) -> Iterator[str]:
    yield _name(case)
    yield str(case["batch_size"])
    yield str(case["n"])
    for way in ways:
        times = case["ms"].get(way)
        yield f"{times['median']:.0f} ({times['low']:.0f} to {times['high']:.0f})" if times else ""
    yield _ratio(case, "times_plain", 1, "{:.2f}")
    yield _ratio(case, "share_of_bound", 100, "{:.0f} %")
    peaks = case["peak_bytes"]
    yield " / ".join(_megabytes(peaks[way]) for way in ("project", "plain") if way in peaks)


def _ratio(case: Mapping[str, Any], name: str, factor: float, form: str) -> str:
    """Return a ratio of times, then that of processor times."""
    wall, processor = (
        form.format(factor * case[key]["project"]) for key in (name, f"processor_{name}")
    )
    return f"{wall} ({processor})"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def _machines(results: Results) -> Iterator[str]:
    """Yield what the steps were measured on, with the number of cases."""
    found: dict[str, int] = {}
    for case in results.get(STEPS, {}).values():
        formats = ", ".join(sorted(set(case["formats"].values())))
        dirty = "+" if case["revision"].endswith("+dirty") else ""
        machine = (
            f"{case['hardware']}, {case['threads']} threads, {formats}, torch {case['torch']}, "
            f"{case['num_workers']} reading workers, {case['date']}, "
            f"revision {case['revision'][:7]}{dirty}"
        )
        found[machine] = found.get(machine, 0) + 1
    for machine, count in found.items():
        yield f"{machine}: {count} cases"


def _compensation(result: Mapping[str, Any]) -> str:
    rows = [
        (
            f"N = {row['num_prototypes']}, width {row['hidden_dim']}",
            f"{row['extra_ms']:.1f} ms",
            f"{row['time_percent']:.1f} %",
            f"{row['memory_percent']:.2f} %",
        )
        for row in result.get("cases", ())
    ]
    head = ("module", "adds", "of a step's time", "of a step's memory")
    return _table(head, rows) if rows else NOT_RUN


def _lines(result: Mapping[str, Any]) -> str:
    if "table" in result:
        return str(result["table"]).rstrip("\n") + "\n"
    return "".join(f"- {line}\n" for line in result.get("lines", ())) or NOT_RUN


def _accuracies(preset: str) -> str:
    file = STUDIES / f"{preset}.json"
    if not file.is_file():
        return NOT_RUN
    lines = json.loads(file.read_text(encoding="utf-8"))["table"]
    return "".join(f"{line}\n" for line in lines)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *(tuple(row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(page: Path, results: Results) -> None:
    """Bring a page up to date."""
    page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    write(PAGE, read(FILE))
    sys.exit(0)
