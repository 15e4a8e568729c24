"""The report's section that sets published tables beside ours, with footnotes. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdci.deconfounding.arms import arm_title
from kdci.reporting.published.footnotes import FOOTNOTES
from kdci.reporting.published.ledger import SCRATCH_VARIANTS, LedgerLine
from kdci.reporting.published.tables import HARDWARE
from kdci.reporting.text.text_table import markdown
from kdci.reporting.text.wording import (
    BUDGET_NOTE,
    NOT_RUN,
    UNKNOWN,
    difference_text,
    mean_text,
    number,
)
from kdci.substitution.registry import title_of

_SUBJECTS = {
    1: "six methods on CIFAR",
    2: "Tiny-ImageNet, with time and memory",
    3: "ImageNet",
    4: "prior information ablated",
    5: "whose dictionary",
}
_SCRATCH_TITLES = {
    SCRATCH_VARIANTS["teacher"]: "teacher, original data",
    SCRATCH_VARIANTS["student"]: "student, original data",
}
_DECIMALS = 2
_COSTS_NOTE = (
    f"Published: one {HARDWARE}. Ours: distillation alone, its mean time for as many steps as an "
    "epoch of the recipe has, and the most memory that a student's process held: of the GPU, or "
    "where there is none of the process itself, which is another quantity."
)


def no_ledger(dataset: str) -> str:
    """Return the line that stands for the section where no table has the dataset."""
    return f"None of the published tables is about {dataset}, so none is set beside these numbers."


def ledger_section(lines: Sequence[LedgerLine]) -> str:
    """Return the published tables beside ours; empty where no table has the dataset."""
    if not lines:
        return ""
    numbers = _numbered(lines)
    parts = [_introduction(lines)]
    for table in dict.fromkeys(line.table for line in lines):
        of_table = [line for line in lines if line.table == table]
        everywhere = set.intersection(*(set(line.footnotes) for line in of_table))
        parts.append(f"### Table {table}: {_SUBJECTS[table]}")
        parts.append(_table(of_table, numbers, everywhere))
        if everywhere:
            parts.append(f"All lines: {_marks(everywhere, numbers)}.")
        if any(line.published_seconds is not None for line in of_table):
            parts += [_costs_table(of_table), _COSTS_NOTE]
    return "\n\n".join([*parts, "### Footnotes", _footnotes(numbers)])


def _introduction(lines: Sequence[LedgerLine]) -> str:
    cells = [line for line in lines if line.method is not None]
    keys = {(line.table, line.teacher, line.student, line.method, line.variant) for line in cells}
    run = {
        (line.table, line.teacher, line.student, line.method, line.variant)
        for line in cells
        if line.ours is not None
    }
    parts = dict.fromkeys(line.part for line in cells if line.variant == "kdci" and line.part)
    deployed = f", `{'` and `'.join(parts)}`" if parts else ""
    return (
        f"{len(run)} of the {len(keys)} cells that are published for {lines[0].dataset} were run "
        "here. Accuracies are of the test split, in percent. Published: as printed. Ours: the "
        f"deployed prediction{deployed}, at the last epoch; mean ± half of the 95 % t-interval "
        "over n replicates (pool seed and student seed), and no interval for n = 1. Delta: ours "
        "minus published, in points, with the interval of ours, for the published numbers have "
        f"none. {BUDGET_NOTE} Only the presets of the tables have the published steps, where these "
        "are known; the column tells ours. KDCI is as these params have it (Setting tells its "
        "fusion). Numbers in the last column are footnotes."
    )


def _numbered(lines: Sequence[LedgerLine]) -> dict[str, int]:
    """Return the numbers of the footnotes that are on any line."""
    used = {key for line in lines for key in line.footnotes}
    keys = [note.key for note in FOOTNOTES if note.key in used]
    return {key: number for number, key in enumerate(keys, start=1)}


def _marks(keys: set[str], numbers: Mapping[str, int]) -> str:
    return ", ".join(str(mark) for mark in sorted(numbers[key] for key in keys))


def _footnotes(numbers: Mapping[str, int]) -> str:
    texts = {note.key: note.text for note in FOOTNOTES}
    return "\n".join(f"{mark}. {texts[key]}" for key, mark in numbers.items())


def _table(lines: Sequence[LedgerLine], numbers: Mapping[str, int], everywhere: set[str]) -> str:
    head = ["pair", "method", "arm", "published", "ours", "n", "budget", "steps"]
    head += ["delta", "notes"]
    body = [
        [
            *_names(line),
            number(line.published, _DECIMALS),
            _ours(line),
            str(line.ours.n) if line.ours else UNKNOWN,
            UNKNOWN if line.budget is None else f"{line.budget:g}",
            ", ".join(f"{steps:,}" for steps in line.num_steps) or UNKNOWN,
            difference_text(line.delta, _DECIMALS) if line.ours else UNKNOWN,
            _marks(set(line.footnotes) - everywhere, numbers),
        ]
        for line in lines
    ]
    return markdown([head, *body], num_names=3)


def _names(line: LedgerLine) -> list[str]:
    if line.method is None:
        return [str(line.teacher or line.student), UNKNOWN, _SCRATCH_TITLES[line.variant]]
    pair = f"{line.teacher} to {line.student}"
    return [pair, title_of(line.method), arm_title(line.variant)]


def _ours(line: LedgerLine) -> str:
    if line.state == "run":
        return mean_text(line.ours, decimals=_DECIMALS)
    return NOT_RUN if line.state == "not run" else "no test data"


def _costs_table(lines: Sequence[LedgerLine]) -> str:
    head = ["method", "arm", "published, s an epoch", "ours", "published, MB", "ours", "budget"]
    head.append("ours on")
    timed = [line for line in lines if line.method is not None]
    return markdown([head, *(_costs_line(line) for line in timed)], num_names=2)


def _costs_line(line: LedgerLine) -> list[str]:
    seconds, memory = number(line.published_seconds, 2), number(line.published_memory, 0)
    cost = line.cost
    ours = [NOT_RUN, NOT_RUN, UNKNOWN, UNKNOWN]
    if cost is not None:
        held = f"{number(cost.memory_mb, 0)} ({'GPU' if cost.on_gpu else 'process'})"
        budget = UNKNOWN if line.budget is None else f"{line.budget:g}"
        ours = [
            number(cost.seconds_per_epoch, 2),
            UNKNOWN if cost.memory_mb is None else held,
            budget,
            cost.hardware,
        ]
    names = [title_of(str(line.method)), arm_title(line.variant)]
    return [*names, seconds, ours[0], memory, *ours[1:]]
