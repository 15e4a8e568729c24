"""The words of `kdci check --estimate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.checking.checks import counted
from pipelines.checking.diagnosis.disk import amount, two_digits
from pipelines.checking.estimating.counting import PUBLISHED
from pipelines.checking.estimating.estimate import DataNeed, Estimate
from pipelines.checking.estimating.measured import OUT_OF_TIME
from pipelines.checking.estimating.stages import StageNeed
from pipelines.checking.estimating.subjects import Pair

COLUMNS = {
    "pool": "pools",
    "dictionary": "dictionaries",
    "student": "students",
    "evaluation": "evaluations",
}


def estimate_lines(found: Estimate, root: Path) -> Iterator[str]:
    """Yield what a terminal shows; paths are told from the project folder on."""
    budget = f"budget {found.params.budget:g}"
    yield f"estimate of {found.params.preset} at {budget}: {found.measured.hardware}"
    yield "measured with random weights on noise; about right where nothing else runs meanwhile"
    if found.note:
        yield found.note
    for section in (_data, _disk, _memory, _hours, _rest):
        yield ""
        yield from section(found, root)


def _data(found: Estimate, root: Path) -> Iterator[str]:
    yield "data"
    rows = [_data_row(need, root) for need in found.data]
    yield from _indented(rows, right=(2,))
    missing = {need.name.partition(",")[0] for need in found.data if not need.counted.is_found}
    for name in sorted(missing & PUBLISHED.keys()):
        yield f"  {name} is published in {amount(PUBLISHED[name]['bytes'])} of archives"


def _data_row(need: DataNeed, root: Path) -> tuple[str, ...]:
    counted = need.counted
    number = "not known" if counted.num_images is None else f"{counted.num_images:,} images"
    if counted.is_found or need.path is None:
        size = f", {amount(counted.num_bytes)}" if counted.num_bytes else ""
        where = _shown(need.path, root) if need.path else "comes with scikit-learn"
        return need.key, need.name, f"{number}{size}", where
    is_published = need.name.partition(",")[0] in PUBLISHED
    number = number if is_published or counted.num_images is None else f"at least {number}"
    return need.key, need.name, number, f"missing: {_shown(need.path, root)}"


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _disk(found: Estimate, root: Path) -> Iterator[str]:
    free = shutil.disk_usage(root).free if root.exists() else None
    has = "" if free is None else f", {amount(free)} are free here"
    yield f"disk; DVC's cache holds artifacts once more where the file system does not share{has}"
    rows, total = [], 0
    for kind, needs in _grouped(found.stages, "kind").items():
        if kind not in ("teacher", "pool", "student"):
            continue  # the rest takes little
        taken, beside = sum(n.num_bytes or 0 for n in needs), max(n.work_bytes for n in needs)
        while_made = f"and {amount(beside)} while the largest is made" if beside else ""
        missing = sum(need.num_bytes is None for need in needs)
        unknown = f"{missing} not known" if missing else ""
        rows.append((counted(len(needs), kind), amount(taken), while_made, unknown))
        total += taken + beside
    yield from _indented(rows, right=(1,))
    if free is not None and total > free:
        yield f"  MORE THAN IS FREE: {amount(total)} of {amount(free)}"


def _memory(found: Estimate, root: Path) -> Iterator[str]:
    here = found.measured.memory
    yield f"memory where it computes, {amount(here)}: the most that a little of each stage took"
    rows = []
    for needs in _grouped((n for n in found.stages if n.memory), "kind").values():
        most = max(needs, key=lambda need: need.memory)
        loud = "  MORE THAN THERE IS" if most.memory > 0.95 * here else ""
        rows.append((amount(most.memory), f"{most.name}{loud}"))
    yield from _indented(rows, right=(0,))


def _hours(found: Estimate, root: Path) -> Iterator[str]:
    in_place = found.num_stages - len(found.stages)
    place = f"{in_place} of {found.num_stages} artifacts are in place and not counted"
    yield f"time on this machine, one stage after another; {place}"
    teachers = [need for need in found.stages if not need.method]
    for adopts, needs in _grouped(teachers, "adopts").items():
        todo = "to adopt" if adopts else "to train"
        yield f"  {counted(len(needs), 'teacher')} {todo}: {_taken(needs, '+')}"
    rows = [("", *COLUMNS.values(), "in all")]
    of_methods = (need for need in found.stages if need.method)
    for method, needs in _grouped(of_methods, "method").items():
        of_kinds = _grouped(needs, "kind")
        cells = [_taken(of_kinds[kind], "+") if kind in of_kinds else "-" for kind in COLUMNS]
        rows.append((method, *cells, _taken(needs, "")))
    yield from _indented(rows, right=range(1, len(COLUMNS) + 2))
    for budget, needs in found.by_budget.items():
        if budget == found.params.budget:
            yield f"  sum: {_taken(needs, ' or more: + marks what was not measured')}"
        else:
            yield f"  at budget {budget:g}: {_taken(needs, ' or more')}"


def _taken(needs: Sequence[StageNeed], or_more: str) -> str:
    """Return the time of stages one after another, with ``or_more`` where some is not known."""
    is_whole = all(need.seconds is not None for need in needs)
    return duration(sum(need.seconds or 0.0 for need in needs)) + ("" if is_whole else or_more)


def _grouped(needs: Iterable[StageNeed], field: str) -> dict[Any, list[StageNeed]]:
    """Return stages by the value of a field, in the order of the first of each."""
    groups: dict[Any, list[StageNeed]] = {}
    for need in needs:
        groups.setdefault(getattr(need, field), []).append(need)
    return groups


def _rest(found: Estimate, root: Path) -> Iterator[str]:
    yield "not counted: k-means, checkpoints, DVC's hashing, the report, tracking"
    reasons: dict[str, list[str]] = {}
    for (_, subject), why in found.measured.missing.items():
        reasons.setdefault(why, []).append(str(subject))
    for why, subjects in reasons.items():
        again = "; run it again to go on" if why == OUT_OF_TIME else ""
        yield f"not measured ({why}{again}): {', '.join(dict.fromkeys(subjects))}"
    if not reasons:
        unknown = dict.fromkeys(need.unknown for need in found.stages if need.unknown)
        yield from (f"not counted: {what}" for what in unknown)
    made_up = sorted(
        {
            subject.method
            for (_, subject), one in found.measured.found.items()
            if isinstance(subject, Pair) and one["is_made_up"]
        }
    )
    if made_up:
        yield f"timed on made-up images in the place of the open world: {', '.join(made_up)}"


# -- numbers ----------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Return seconds as a person says them, with two digits that count."""
    for unit, size, limit in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 1000)):
        if seconds / size < limit:
            return f"{two_digits(seconds / size)} {unit}"
    return f"{two_digits(seconds / 86_400)} days"


def _indented(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
