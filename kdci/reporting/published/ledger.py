"""The ledger: every published cell of the dataset beside what was measured here. Torch-free.

As lines of JSON, and as the report's section with the tables and their footnotes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdci.deconfounding.arms import arm_title
from kdci.reporting.costs import Cost
from kdci.reporting.evidence import Evidence
from kdci.reporting.published.footnotes import FOOTNOTES, footnotes_of
from kdci.reporting.published.tables import (
    HARDWARE,
    STUDENT,
    TEACHER,
    PublishedCell,
    published_cells,
)
from kdci.reporting.results import Row, grouped
from kdci.reporting.statistics import Estimate, estimate
from kdci.reporting.text.tables import markdown
from kdci.reporting.text.wording import (
    BUDGET_NOTE,
    NOT_RUN,
    UNKNOWN,
    difference_text,
    mean_text,
    number,
)
from kdci.substitution.registry import title_of

State = Literal["run", "not run", "not tested"]
_SUBJECTS = {
    1: "six methods on CIFAR",
    2: "Tiny-ImageNet, with time and memory",
    3: "ImageNet",
    4: "prior information ablated",
    5: "whose dictionary",
}
_SCRATCH_TITLES = {TEACHER: "teacher, original data", STUDENT: "student, original data"}
_DECIMALS = 2
_COSTS_NOTE = (
    f"Published: one {HARDWARE}. Ours: distillation alone, its mean time for as many steps as an "
    "epoch of the recipe has, and the most memory that a student's process held: of the GPU, or "
    "where there is none of the process itself, which is another quantity."
)


@dataclass(frozen=True)
class LedgerLine:
    """A published number beside ours; of a cell that was run at several budgets, a line each.

    Attributes:
        cell: What is published.
        state: `not tested`: students are there, but no test data.
        ours: Accuracy in percent over our replicates, the deployed prediction.
        budget: Of ours.
        part: Which prediction ours is, `backbone` or `compensated`.
        num_steps: Of ours, in distillation; more than one where replicates differ.
        cost: What ours took; null where it is not known.
    """

    cell: PublishedCell
    state: State
    ours: Estimate | None
    budget: float | None
    part: str | None = None
    num_steps: tuple[int, ...] = ()
    cost: Cost | None = None

    @property
    def delta(self) -> Estimate | None:
        """Ours minus published, in points; the interval is ours, published numbers have none."""
        if self.ours is None:
            return None
        bounds, published = self.ours.interval, self.cell.accuracy
        interval = None if bounds is None else (bounds[0] - published, bounds[1] - published)
        return Estimate(self.ours.mean - published, interval, self.ours.n)

    def as_json(self) -> dict[str, Any]:
        """Return it as ``report/ledger.json`` has it."""
        cell, ours, delta = self.cell, self.ours, self.delta
        return {
            "table": cell.table,
            "dataset": cell.dataset,
            "teacher": cell.teacher,
            "student": cell.student,
            "method": cell.method,
            "variant": cell.variant,
            "published": cell.accuracy,
            "state": self.state,
            "ours": ours.mean if ours else None,
            "n": ours.n if ours else 0,
            "interval": list(ours.interval) if ours and ours.interval else None,
            "part": self.part,
            "budget": self.budget,
            "num_steps": list(self.num_steps),
            "delta": delta.mean if delta else None,
            "footnotes": list(footnotes_of(cell)),
            "published_seconds_per_epoch": cell.seconds_per_epoch,
            "published_memory_mb": cell.memory_mb,
            "cost": asdict(self.cost) if self.cost else None,
        }


def ledger(evidence: Evidence) -> list[LedgerLine]:
    """Set each published cell of the evidence's dataset beside ours, table by table.

    Empty for a dataset that no table has.
    """
    dataset = evidence.spec.name
    of_dataset = [row for row in evidence.rows if row.dataset == dataset]
    rows: dict[tuple[str | None, ...], list[Row]] = grouped(
        of_dataset, lambda row: (*row.key, row.variant)
    )
    costs = _costs(evidence)
    lines: list[LedgerLine] = []
    for cell in published_cells(dataset):
        if cell.method is None:
            lines.append(_scratch_line(cell, evidence))
        else:
            lines += _lines(cell, rows.get(cell.key, []), costs)
    return lines


def _scratch_line(cell: PublishedCell, evidence: Evidence) -> LedgerLine:
    facts = evidence.teachers.get(cell.teacher) if cell.teacher else None
    accuracy = facts.get("accuracy") if facts else None
    ours = None if accuracy is None else estimate([accuracy])
    return LedgerLine(
        cell,
        state="run" if ours else ("not tested" if facts else "not run"),
        ours=ours,
        budget=1.0 if ours else None,  # no budget scales a teacher
    )


def _lines(
    cell: PublishedCell, rows: Sequence[Row], costs: Mapping[tuple[Any, ...], Sequence[Cost]]
) -> Iterator[LedgerLine]:
    by_budget: dict[float | None, list[Row]] = {**grouped(rows, lambda row: row.budget)}
    for budget, own in (by_budget or {None: []}).items():
        ours = estimate([row.accuracy for row in own if row.accuracy is not None])
        yield LedgerLine(
            cell,
            state="run" if ours else ("not tested" if own else "not run"),
            ours=ours,
            budget=budget,
            part=own[0].deployed if own else None,
            num_steps=tuple(sorted({row.num_steps for row in own})),
            cost=_together(costs.get((*cell.key, budget), ())),
        )


def _costs(evidence: Evidence) -> dict[tuple[Any, ...], list[Cost]]:
    """Return what the students of each cell and budget took."""
    budgets = {row.cell: row.budget for row in evidence.rows}
    found: dict[tuple[Any, ...], list[Cost]] = {}
    for cell, cost in evidence.costs.items():
        key = (cell.teacher, cell.student, cell.method, cell.variant, budgets.get(cell))
        found.setdefault(key, []).append(cost)
    return found


def _together(costs: Sequence[Cost]) -> Cost | None:
    """Return the mean time and the largest memory of replicates; all hardware is named.

    Where some ran on a GPU, memory is theirs.
    """
    if not costs:
        return None
    on_gpu = any(cost.on_gpu for cost in costs)
    known = [cost.memory_mb for cost in costs if cost.on_gpu == on_gpu]
    memory = [value for value in known if value is not None]
    return Cost(
        seconds_per_epoch=statistics.fmean(cost.seconds_per_epoch for cost in costs),
        memory_mb=max(memory, default=None),
        on_gpu=on_gpu,
        hardware=", ".join(dict.fromkeys(cost.hardware for cost in costs)),
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
    for table in dict.fromkeys(line.cell.table for line in lines):
        of_table = [line for line in lines if line.cell.table == table]
        everywhere = set.intersection(*(set(footnotes_of(line.cell)) for line in of_table))
        parts.append(f"### Table {table}: {_SUBJECTS[table]}")
        parts.append(_table(of_table, numbers, everywhere))
        if everywhere:
            parts.append(f"All lines: {_marks(everywhere, numbers)}.")
        if any(line.cell.seconds_per_epoch is not None for line in of_table):
            parts += [_costs_table(of_table), _COSTS_NOTE]
    notes = "\n".join(f"{mark}. {FOOTNOTES[key].text}" for key, mark in numbers.items())
    return "\n\n".join([*parts, "### Footnotes", notes])


def _introduction(lines: Sequence[LedgerLine]) -> str:
    of_methods = [line for line in lines if line.cell.method is not None]
    cells = {line.cell for line in of_methods}
    run = {line.cell for line in of_methods if line.ours is not None}
    kdci = [line.part for line in of_methods if line.cell.variant == "kdci" and line.part]
    parts = dict.fromkeys(kdci)
    deployed = f", `{'` and `'.join(parts)}`" if parts else ""
    dataset = lines[0].cell.dataset
    return (
        f"{len(run)} of the {len(cells)} cells that are published for {dataset} were run "
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
    used = {key for line in lines for key in footnotes_of(line.cell)}
    keys = [key for key in FOOTNOTES if key in used]
    return {key: number for number, key in enumerate(keys, start=1)}


def _marks(keys: set[str], numbers: Mapping[str, int]) -> str:
    return ", ".join(str(mark) for mark in sorted(numbers[key] for key in keys))


def _table(lines: Sequence[LedgerLine], numbers: Mapping[str, int], everywhere: set[str]) -> str:
    head = ["pair", "method", "arm", "published", "ours", "n", "budget", "steps"]
    head += ["delta", "notes"]
    body = [
        [
            *_names(line.cell),
            number(line.cell.accuracy, _DECIMALS),
            _ours(line),
            str(line.ours.n) if line.ours else UNKNOWN,
            _budget(line),
            ", ".join(f"{steps:,}" for steps in line.num_steps) or UNKNOWN,
            difference_text(line.delta, _DECIMALS) if line.ours else UNKNOWN,
            _marks(set(footnotes_of(line.cell)) - everywhere, numbers),
        ]
        for line in lines
    ]
    return markdown([head, *body], num_names=3)


def _names(cell: PublishedCell) -> list[str]:
    if cell.method is None:
        return [str(cell.teacher or cell.student), UNKNOWN, _SCRATCH_TITLES[cell.variant]]
    pair = f"{cell.teacher} to {cell.student}"
    return [pair, title_of(cell.method), arm_title(cell.variant)]


def _ours(line: LedgerLine) -> str:
    if line.state == "run":
        return mean_text(line.ours, decimals=_DECIMALS)
    return NOT_RUN if line.state == "not run" else "no test data"


def _costs_table(lines: Sequence[LedgerLine]) -> str:
    head = ["method", "arm", "published, s an epoch", "ours", "published, MB", "ours", "budget"]
    head.append("ours on")
    timed = [line for line in lines if line.cell.method is not None]
    return markdown([head, *(_costs_line(line) for line in timed)], num_names=2)


def _costs_line(line: LedgerLine) -> list[str]:
    cell, cost = line.cell, line.cost
    ours = [NOT_RUN, NOT_RUN, UNKNOWN, UNKNOWN]
    if cost is not None:
        held = f"{number(cost.memory_mb, 0)} ({'GPU' if cost.on_gpu else 'process'})"
        ours = [
            number(cost.seconds_per_epoch, 2),
            UNKNOWN if cost.memory_mb is None else held,
            _budget(line),
            cost.hardware,
        ]
    seconds, memory = number(cell.seconds_per_epoch, 2), number(cell.memory_mb, 0)
    return [*_names(cell)[1:], seconds, ours[0], memory, *ours[1:]]


def _budget(line: LedgerLine) -> str:
    return UNKNOWN if line.budget is None else f"{line.budget:g}"
