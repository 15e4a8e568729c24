"""The words of `kdci check --estimate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.checking.estimating.counting import PUBLISHED_BYTES
from pipelines.checking.estimating.estimate import DataNeed, Estimate, KindTime
from pipelines.checking.estimating.measured import OUT_OF_TIME
from pipelines.checking.estimating.pairs import Pair

COLUMNS = ("pool", "dictionary", "student", "evaluation")


def estimate_lines(found: Estimate, root: Path) -> Iterator[str]:
    """Yield what a terminal shows.

    Args:
        found: The estimate.
        root: The project folder.
    """
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
    rows = [_data_row(need, root) for need in found.data if need.needed]
    yield from _indented(rows, right=(2,))
    missing = {need.name.partition(",")[0] for need in found.data if not need.counted.is_found}
    for name in sorted(missing & PUBLISHED_BYTES.keys()):
        yield f"  {name} is published in {amount(PUBLISHED_BYTES[name])} of archives"


def _data_row(need: DataNeed, root: Path) -> tuple[str, ...]:
    counted = need.counted
    number = "not known" if counted.num_images is None else f"{counted.num_images:,} images"
    if counted.is_found or need.path is None:
        size = f", {amount(counted.num_bytes)}" if counted.num_bytes else ""
        where = _shown(need.path, root) if need.path else "comes with scikit-learn"
        return need.key, need.name, f"{number}{size}", where
    is_published = need.name.partition(",")[0] in PUBLISHED_BYTES
    number = number if is_published or counted.num_images is None else f"at least {number}"
    return need.key, need.name, number, f"missing: {_shown(need.path, root)}"


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _disk(found: Estimate, root: Path) -> Iterator[str]:
    free = shutil.disk_usage(root).free if root.exists() else None
    has = "" if free is None else f", {amount(free)} are free here"
    yield f"disk; DVC's cache holds artifacts once more where the file system does not share{has}"
    rows, total = [], 0
    for need in found.disk:
        beside = need.largest_work
        while_made = f"and {amount(beside)} while the largest is made" if beside else ""
        unknown = f"{need.unknown} not known" if need.unknown else ""
        rows.append((_counted(need.number, need.kind), amount(need.num_bytes), while_made, unknown))
        total += need.num_bytes + beside
    yield from _indented(rows, right=(1,))
    if free is not None and total > free:
        yield f"  MORE THAN IS FREE: {amount(total)} of {amount(free)}"


def _memory(found: Estimate, root: Path) -> Iterator[str]:
    here = found.measured.memory
    yield f"memory where it computes, {amount(here)}: the most that a little of each stage took"
    rows = []
    for need in found.memory:
        loud = "  MORE THAN THERE IS" if need.num_bytes > 0.95 * here else ""
        rows.append((amount(need.num_bytes), f"{need.stage}{loud}"))
    yield from _indented(rows, right=(0,))


def _hours(found: Estimate, root: Path) -> Iterator[str]:
    place = f"{found.num_in_place} of {found.num_stages} artifacts are in place and not counted"
    yield f"time on this machine, one stage after another; {place}"
    teachers = [entry for entry in found.times if not entry.method]
    for entry in teachers:
        adopted = "to adopt" if entry.kind.startswith("adopted") else "to train"
        yield f"  {_counted(entry.number, 'teacher')} {adopted}: {_of(entry)}"
    of_methods = {(e.method, e.kind): e for e in found.times if e.method}
    methods = dict.fromkeys(method for method, _ in of_methods)
    rows = [("", *(f"{_plural(column)}" for column in COLUMNS), "in all")]
    for method in methods:
        entries = [of_methods.get((method, column)) for column in COLUMNS]
        whole = sum(entry.seconds for entry in entries if entry)
        rows.append((method, *(_of(e) if e else "-" for e in entries), duration(whole)))
    yield from _indented(rows, right=range(1, len(COLUMNS) + 2))
    plus = " or more: + marks what was not measured"
    incomplete = any(entry.incomplete for entry in found.times)
    yield f"  sum: {duration(found.seconds)}{plus if incomplete else ''}"
    for budget, (seconds, is_whole) in found.budgets.items():
        yield f"  at budget {budget:g}: {duration(seconds)}{'' if is_whole else ' or more'}"


def _of(entry: KindTime) -> str:
    return duration(entry.seconds) + ("+" if entry.incomplete else "")


def _rest(found: Estimate, root: Path) -> Iterator[str]:
    yield "not counted: k-means, checkpoints, DVC's hashing, the report, tracking"
    reasons: dict[str, list[str]] = {}
    for (_, subject), why in found.measured.missing.items():
        reasons.setdefault(why, []).append(str(subject))
    for why, subjects in reasons.items():
        again = "; run it again to go on" if why == OUT_OF_TIME else ""
        yield f"not measured ({why}{again}): {', '.join(dict.fromkeys(subjects))}"
    if not reasons:
        yield from (f"not counted: {what}" for what in found.unknown)
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
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds / 86_400)} days"


def amount(num_bytes: float) -> str:
    """Return bytes as a person says them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= 0.95 * size:
            return f"{_two_digits(num_bytes / size)} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def _two_digits(value: float) -> str:
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:,.0f}" if value < 100 else f"{round(value, -1):,.0f}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"


def _indented(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
