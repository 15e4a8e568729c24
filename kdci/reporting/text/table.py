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
    compared = compare([row for row in rows if not is_shift(row.method)])
    comparisons = grouped(compared, lambda one: one.group)
    blocks = []
    for group, own in grouped(rows, lambda row: row.group).items():
        blocks += [_pair_title(own[0]), *_pair_blocks(own, comparisons.get(group, []), measure)]
    return "\n\n".join([*blocks, "\n".join(_notes(rows, measure))])


def _pair_blocks(
    rows: Sequence[Row], comparisons: Sequence[Comparison], measure: Measure
) -> list[str]:
    """Return a pair's tables: vanilla and KDCI, all arms, known shifts; those there is one of."""
    methods = [row for row in rows if not is_shift(row.method)]
    shifts = [row for row in rows if is_shift(row.method)]
    blocks = []
    if comparisons:
        blocks.append(_in_ascii(_cells(comparisons)))
        blocks.append("\n".join(headline(one) for one in comparisons))
    if has_further_arms(methods):
        blocks.append("Arms\n" + _in_ascii(arm_cells(compare_arms(methods, measure))))
    if shifts:
        blocks.append("Known shifts\n" + _in_ascii(shift_cells(compare_shifts(shifts, measure))))
    return blocks


def _in_ascii(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(aligned([[cell.replace("±", "+-") for cell in line] for line in lines]))


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Return the same table in Markdown.

    Args:
        comparisons: Those of one teacher-student pair.
    """
    return markdown(_cells(comparisons))


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


def _cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    head = ["method", "vanilla", "KDCI backbone", "KDCI compensated", "paired difference", "n"]
    lines = [[*head, "seconds a student"]]
    for one in comparisons:
        paired, times = one.difference, number(one.vanilla_seconds)
        kdci = [UNKNOWN] * 4  # a control has nothing to say on it
        if not one.is_control:
            kdci = [mean_text(one.backbone), mean_text(one.compensated)]
            kdci += [difference_text(paired), str(paired.n) if paired else UNKNOWN]
            times += f" / {number(one.kdci_seconds)}"
        lines.append([title_of(one.method), mean_text(one.vanilla), *kdci, times])
    return lines
