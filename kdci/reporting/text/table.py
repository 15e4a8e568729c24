"""The table of results, for a terminal and for Markdown. Loads neither torch nor matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from kdci.deconfounding.arms import arm_title
from kdci.reporting.arm_comparison import compare_arms, compare_shifts, has_further_arms
from kdci.reporting.comparison import Comparison, compare
from kdci.reporting.results import Measure, Row, grouped, measure_of
from kdci.reporting.text.arm_tables import arm_cells, shift_cells
from kdci.reporting.text.text_table import WIDTH, aligned, markdown
from kdci.reporting.text.wording import (
    ARMS_NOTE,
    BUDGET_NOTE,
    COST_NOTE,
    MEASURE_NOTES,
    SHIFTS_NOTE,
    UNKNOWN,
    budget_text,
    difference_text,
    headline,
    is_shift,
    mean_text,
    number,
)
from kdci.substitution.registry import title_of


def terminal_table(rows: Sequence[Row]) -> str:
    """Return the table that `kdci show` prints, ASCII only, one block a pair and budget.

    Args:
        rows: Content of ``report/results.json``.
    """
    if not rows:
        return "No results yet: nothing of the grid has been evaluated."
    measure = measure_of(rows)
    comparisons = compare([row for row in rows if not is_shift(row.method)])
    blocks = []
    for group, of_group in grouped(rows).items():
        compared = [one for one in comparisons if one.group == group]
        parts = [_pair_title(of_group[0]), *_pair_blocks(of_group, compared, measure)]
        blocks.append("\n\n".join(parts))
    return "\n\n".join([*blocks, "\n".join(_notes(rows, measure))])


def _pair_blocks(
    rows: Sequence[Row], comparisons: Sequence[Comparison], measure: Measure
) -> list[str]:
    """Return a pair's tables: vanilla and KDCI, all arms, known shifts; those there is one of."""
    methods = [row for row in rows if not is_shift(row.method)]
    shifts = [row for row in rows if is_shift(row.method)]
    blocks = []
    if comparisons:
        blocks.append("\n".join(aligned(_cells(comparisons, plus_minus="+-"))))
        blocks.append("\n".join(headline(one) for one in comparisons))
    if has_further_arms(methods):
        lines = arm_cells(compare_arms(methods, measure), plus_minus="+-")
        blocks.append("\n".join(["Arms", *aligned(lines)]))
    if shifts:
        lines = shift_cells(compare_shifts(shifts, measure), plus_minus="+-")
        blocks.append("\n".join(["Known shifts", *aligned(lines)]))
    return blocks


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Return the same table in Markdown.

    Args:
        comparisons: Those of one teacher-student pair.
    """
    return markdown(_cells(comparisons, plus_minus="±"))


def rows_table(rows: Sequence[Row]) -> str:
    """Return one Markdown line a student: the replicates behind the means."""
    measure = measure_of(rows)
    head = ["method", "variant", "pool", "seed", "backbone", "compensated", "steps", "seconds"]
    lines = [head]
    for row in rows:
        values = [number(row.value(measure, part)) for part in ("backbone", "compensated")]
        name = [title_of(row.method), arm_title(row.variant)]
        seeds = [str(row.pool_seed), str(row.seed)]
        lines.append([*name, *seeds, *values, f"{row.num_steps:,}", number(row.seconds)])
    return markdown(lines, num_names=2)


def _notes(rows: Sequence[Row], measure: Measure) -> list[str]:
    deploy = next((row.deploy for row in rows if row.variant == "kdci"), "backbone")
    notes = [
        f"Numbers: {MEASURE_NOTES[measure]}; +- is half of a 95 % t-interval.",
        f"Paired difference: KDCI's {deploy} (the deployed one) minus vanilla, by replicate.",
        "Seconds a student: distillation alone, vanilla / KDCI.",
    ]
    if any(row.budget != 1 for row in rows):
        notes += textwrap.wrap(BUDGET_NOTE, WIDTH)
    if has_further_arms(row for row in rows if not is_shift(row.method)):
        notes += textwrap.wrap(ARMS_NOTE, WIDTH)
    if any(is_shift(row.method) for row in rows):
        notes += textwrap.wrap(f"{SHIFTS_NOTE} {COST_NOTE}", WIDTH)
    return notes


def _pair_title(row: Row) -> str:
    accuracy = ""
    if row.teacher_accuracy is not None:
        accuracy = f", teacher {number(row.teacher_accuracy)} %"
    pair = f"{row.teacher} -> {row.student} on {row.dataset}"
    return f"{row.preset}: {pair}{accuracy}{budget_text(row.budget)}"


def _cells(comparisons: Sequence[Comparison], plus_minus: str) -> list[list[str]]:
    lines = [
        [
            "method",
            "vanilla",
            "KDCI backbone",
            "KDCI compensated",
            "paired difference",
            "n",
            "seconds a student",
        ]
    ]
    for one in comparisons:
        vanilla = mean_text(one.vanilla, plus_minus)
        lines.append([title_of(one.method), vanilla, *_kdci_cells(one, plus_minus), _seconds(one)])
    return lines


def _kdci_cells(one: Comparison, plus_minus: str) -> list[str]:
    """Return the cells about KDCI, which a control has nothing to say on."""
    if one.is_control:
        return [UNKNOWN] * 4
    values = [mean_text(known, plus_minus) for known in (one.backbone, one.compensated)]
    paired = one.difference
    return [*values, difference_text(paired), str(paired.n) if paired else UNKNOWN]


def _seconds(one: Comparison) -> str:
    vanilla = number(one.vanilla_seconds)
    return vanilla if one.is_control else f"{vanilla} / {number(one.kdci_seconds)}"
