"""The table of results, for a terminal and for Markdown. Loads neither torch nor matplotlib."""

from __future__ import annotations

from collections.abc import Sequence

from kdci.reporting.comparison import Comparison, compare
from kdci.reporting.results import Row, measure_of
from kdci.reporting.wording import (
    UNKNOWN,
    difference_text,
    headline,
    mean_text,
    method_title,
    number,
)

MEASURE_NOTES = {
    "accuracy": "accuracy on the test split, percent, last epoch",
    "agreement": "no test data: agreement with the teacher on held-out substitutes, percent",
}


def terminal_table(rows: Sequence[Row]) -> str:
    """Return the table that `kdci show` prints, ASCII only, one block a pair.

    Args:
        rows: Content of ``report/results.json``.
    """
    if not rows:
        return "No results yet: nothing of the grid has been evaluated."
    comparisons = compare(rows)
    blocks = []
    for pair in dict.fromkeys((one.teacher, one.student) for one in comparisons):
        of_pair = [one for one in comparisons if (one.teacher, one.student) == pair]
        lines = _cells(of_pair, plus_minus="+-")
        words = [headline(one) for one in of_pair]
        blocks.append("\n".join([_pair_title(pair, rows), "", *_aligned(lines), "", *words]))
    return "\n\n".join([*blocks, "\n".join(_notes(comparisons))])


def markdown_table(comparisons: Sequence[Comparison]) -> str:
    """Return the same table in Markdown.

    Args:
        comparisons: Those of one teacher-student pair.
    """
    head, *body = _cells(comparisons, plus_minus="±")
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])


def rows_table(rows: Sequence[Row]) -> str:
    """Return one Markdown line a student: the replicates behind the means."""
    measure = measure_of(rows)
    head = ["method", "variant", "pool", "seed", "backbone", "compensated", "steps", "seconds"]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in rows:
        values = [number(row.value(measure, part)) for part in ("backbone", "compensated")]
        name = [method_title(row.method), variant_title(row.variant)]
        seeds = [str(row.pool_seed), str(row.seed)]
        lines.append([*name, *seeds, *values, f"{row.num_steps:,}", number(row.seconds)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def variant_title(variant: str) -> str:
    """Return a variant's name as the paper writes it."""
    return "KDCI" if variant == "kdci" else variant


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    deploy = next((one.deploy for one in comparisons if one.kdci), "backbone")
    return [
        f"Numbers: {MEASURE_NOTES[comparisons[0].measure]}; +- is half of a 95 % t-interval.",
        f"Paired difference: KDCI's {deploy} (the deployed one) minus vanilla, by replicate.",
        "Seconds a student: distillation alone, vanilla / KDCI.",
    ]


def _pair_title(pair: tuple[str, str], rows: Sequence[Row]) -> str:
    teacher, student = pair
    row = next(row for row in rows if (row.teacher, row.student) == pair)
    accuracy = ""
    if row.teacher_accuracy is not None:
        accuracy = f", teacher {number(row.teacher_accuracy)} %"
    return f"{row.preset}: {teacher} -> {student} on {row.dataset}{accuracy}"


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
        lines.append(
            [method_title(one.method), vanilla, *_kdci_cells(one, plus_minus), _seconds(one)]
        )
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


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Pad columns to the width of their widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
