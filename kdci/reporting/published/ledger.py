"""The ledger: every published cell of the dataset beside what was measured here. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdci.reporting.costs import Cost
from kdci.reporting.evidence import Evidence
from kdci.reporting.published.footnotes import footnotes_of
from kdci.reporting.published.tables import PublishedCell, published_cells
from kdci.reporting.results import Row, grouped
from kdci.reporting.statistics import Estimate, estimate

State = Literal["run", "not run", "not tested"]


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
    rows = grouped(of_dataset, lambda row: (*row.key, row.variant))
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
