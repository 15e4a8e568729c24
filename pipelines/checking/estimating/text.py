"""The words of `kdci check --estimate`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from kdci.probing.subjects import Kind, Work
from pipelines.checking.estimating.counting import PUBLISHED_BYTES
from pipelines.checking.estimating.estimate import DataNeed, Estimate, KindTime

MOST_SHARES = 5
LEAST_SHARE = 0.03
COLUMNS = ("pool", "dictionary", "student", "evaluation")
STEPS: dict[Kind, str] = {
    "forward": "predictions of",
    "train": "training of",
    "differentiate": "images' gradients through",
    "invert": "inversion of",
    "fit": "training of the",
    "generate": "images of the",
    "play": "training of the",
    "contrast": "contrast by the",
}


def estimate_lines(found: Estimate, root: Path) -> Iterator[str]:
    """Yield what a terminal shows.

    Args:
        found: The estimate.
        root: The project folder.
    """
    budget = f"budget {found.params.budget:g}"
    yield f"estimate of {found.params.preset} at {budget}: {found.hardware}"
    probed = f"probed for {found.probes.seconds:.0f} s with random weights"
    yield f"{probed}; seconds are about right where nothing else runs meanwhile"
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
    here = psutil.virtual_memory().total
    yield f"memory of the device, {amount(found.device_bytes)}, at the heaviest step, computed"
    yield "(networks with gradients and optimisers, then what is kept for the way back):"
    rows = []
    for need in found.memory:
        kept = "not probed" if need.activations is None else amount(need.activations)
        measured = f"measured {amount(need.measured)}" if need.measured is not None else ""
        if need.total > found.device_bytes:
            measured += "  MORE THAN THERE IS"
        parts = f"= {amount(need.networks)} + {kept}"
        rows.append((amount(need.total), parts, f"batch {need.batch}", need.stage, measured))
    yield from _indented(rows, right=(0,))
    yield f"memory of the host for images, {amount(here)} are here"
    for holding in found.host[:3]:
        loud = "  MORE THAN THIS MACHINE HAS" if holding.num_bytes > here else ""
        yield f"  {amount(holding.num_bytes)}  {holding.what}{loud}"


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
    plus = " or more: + marks what has a part that was not probed"
    incomplete = any(entry.incomplete for entry in found.times)
    yield f"  sum: {duration(found.seconds)}{plus if incomplete else ''}"
    yield from _shares(found)
    for budget, (seconds, is_whole) in found.budgets.items():
        yield f"  at budget {budget:g}: {duration(seconds)}{'' if is_whole else ' or more'}"


def _of(entry: KindTime) -> str:
    return duration(entry.seconds) + ("+" if entry.incomplete else "")


def _shares(found: Estimate) -> Iterator[str]:
    """Yield what most of the time goes to."""
    shares = {
        "decoding images": found.reading_seconds,
        "starting processes": found.start_seconds,
    }
    for (kind, subject), seconds in found.by_step.items():
        name = f"{STEPS[kind]} {subject}"  # whatever the size of the images or of the generator
        shares[name] = shares.get(name, 0.0) + seconds
    total = found.seconds or 1.0
    largest = sorted(shares.items(), key=lambda item: -item[1])[:MOST_SHARES]
    told = [f"{100 * s / total:.0f} % {what}" for what, s in largest if s > LEAST_SHARE * total]
    if told:
        yield f"  most of it: {', '.join(told)}"


def _rest(found: Estimate, root: Path) -> Iterator[str]:
    yield "not counted: k-means, compensation, checkpoints, DVC's hashing, the report, tracking"
    reasons: dict[str, list[str]] = {}
    for (kind, subject), why in found.probes.missing.items():
        known = found.probes.step_seconds(Work(kind, subject, 2)) is not None
        reason = f"{why}, taken from its other steps" if known else why
        reasons.setdefault(reason, []).append(f"{STEPS[kind]} {subject}")
    for why, steps in reasons.items():
        yield f"not probed ({why}): {', '.join(dict.fromkeys(steps))}"
    yield from dict.fromkeys(f"not counted: {what}" for what in found.unknown)
    made_up = sorted({f"{source.dataset} ({source.source})" for source in found.probes.made_up})
    if made_up:
        yield f"decoding was timed on made-up images: {', '.join(made_up)}"


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
