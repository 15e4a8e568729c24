"""Tables of results, for a terminal and for Markdown. Loads neither torch nor matplotlib.

A table is lines of cells, the first of which is its head.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.reporting.comparison import (
    BALANCED,
    ArmResult,
    Comparison,
    ShiftResult,
    compare,
    compare_arms,
    compare_shifts,
    has_further_arms,
)
from kdci.reporting.results import Group, Measure, Row, grouped, measure_of
from kdci.reporting.statistics import Estimate
from kdci.reporting.text import wording
from kdci.substitution.registry import title_of

WIDTH = 110
"""Characters a terminal's line may have; wider tables go on below."""
_GAP = "  "


class _OfGroup(Protocol):
    @property
    def group(self) -> Group: ...


_T = TypeVar("_T", bound=_OfGroup)


def by_pair(items: Iterable[_T], table: Callable[[list[_T]], str]) -> list[str]:
    """Return for each pair and budget its name and the ``table`` of what is about it."""
    parts: list[str] = []
    for group, own in grouped(items, lambda item: item.group).items():
        parts += [f"{wording.pair_text(group)}:", table(own)]
    return parts


def markdown(lines: Sequence[Sequence[str]], *, num_names: int | None = 1) -> str:
    """Return a Markdown table.

    Args:
        lines: Head and body, all of one length.
        num_names: How many columns, the first ones, are names and not numbers, which stand at the
            right; null: all of them.
    """
    head, *body = lines
    names = len(head) if num_names is None else num_names
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])


def aligned(lines: Sequence[Sequence[str]], *, width: int = WIDTH) -> list[str]:
    """Pad columns to the width of their widest cell.

    Columns that have no room left go on in a block below, beside the first column again.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        taken = sum(widths[known] + len(_GAP) for known in blocks[-1])
        if len(blocks[-1]) > 1 and taken + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)
    text: list[str] = []
    for columns in blocks:
        text += [""] if text else []
        text += [
            _GAP.join(line[column].ljust(widths[column]) for column in columns).rstrip()
            for line in lines
        ]
    return text


def arm_cells(results: Sequence[ArmResult]) -> list[list[str]]:
    """Return head and lines: one a method and arm, then one an arm over all methods.

    Args:
        results: Those of one teacher-student pair.
    """
    num_methods = len({one.method for one in results if one.method is not None})
    head = ["method", "arm", "backbone", "compensated", "paired difference", "p", "p (Holm)", "n"]
    return [head, *(_arm_line(one, num_methods) for one in results)]


def _arm_line(one: ArmResult, num_methods: int) -> list[str]:
    backbone = compensated = wording.UNKNOWN
    if one.method is not None:
        backbone = wording.mean_text(one.backbone)
        if ARMS[one.arm].compensated:
            compensated = wording.mean_text(one.compensated)
    paired = one.difference
    return [
        where(one, num_methods),
        arm_title(one.arm),
        backbone,
        compensated,
        wording.difference_text(paired),
        wording.p_text(one.p),
        wording.p_text(one.adjusted_p),
        str(paired.n) if paired else wording.UNKNOWN,
    ]


def where(one: ArmResult, num_methods: int) -> str:
    """Return what a result is about: a method's or a shift's name, or how many methods."""
    if one.method is not None:
        return title_of(one.method)
    all_run = one.num_methods == num_methods
    return "all methods" if all_run else f"{one.num_methods} of {num_methods} methods"


def shift_cells(results: Sequence[ShiftResult]) -> list[list[str]]:
    """Return head and lines: one a known shift, with a column for each arm's paired gain.

    Args:
        results: Those of one teacher-student pair.
    """
    against = any(one.shift == BALANCED for one in results)
    arms = [one.arm for one in results[0].arms]
    cost = [f"vanilla - {BALANCED}"] if against else []
    lines = [["shift", "vanilla", *cost, *map(arm_title, arms), "n"]]
    for one in results:
        gains = [arm.difference for arm in one.arms]
        here = wording.difference_text(one.cost) if one.shift != BALANCED else wording.UNKNOWN
        costs = [here] if against else []
        words = [
            wording.mean_text(one.vanilla),
            *costs,
            *(wording.difference_text(gain) for gain in gains),
        ]
        lines.append([one.shift, *words, _counts([one.vanilla, *gains])])
    return lines


def _counts(estimates: Iterable[Estimate | None]) -> str:
    """Return the number of replicates; "2 to 3" where it is not the same for all."""
    counts = sorted({known.n for known in estimates if known})
    return (
        " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else wording.UNKNOWN
    )


def terminal_table(rows: Sequence[Row]) -> str:
    """Return the table that `kdci show` prints, ASCII only, one block a pair and budget.

    Args:
        rows: Content of ``report/results.json``.
    """
    if not rows:
        return "No results yet: nothing of the grid has been evaluated."
    measure = measure_of(rows)
    compared = compare([row for row in rows if not wording.is_shift(row.method)])
    comparisons = grouped(compared, lambda one: one.group)
    blocks = []
    for group, own in grouped(rows, lambda row: row.group).items():
        blocks += [_pair_title(own[0]), *_pair_blocks(own, comparisons.get(group, []), measure)]
    return "\n\n".join([*blocks, "\n".join(_notes(rows, measure))])


def _pair_blocks(
    rows: Sequence[Row], comparisons: Sequence[Comparison], measure: Measure
) -> list[str]:
    """Return a pair's tables: vanilla and KDCI, all arms, known shifts; those there is one of."""
    methods = [row for row in rows if not wording.is_shift(row.method)]
    shifts = [row for row in rows if wording.is_shift(row.method)]
    blocks = []
    if comparisons:
        blocks.append(_in_ascii(comparison_cells(comparisons)))
        blocks.append("\n".join(wording.headline(one) for one in comparisons))
    if has_further_arms(methods):
        blocks.append("Arms\n" + _in_ascii(arm_cells(compare_arms(methods, measure))))
    if shifts:
        blocks.append("Known shifts\n" + _in_ascii(shift_cells(compare_shifts(shifts, measure))))
    return blocks


def _in_ascii(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(aligned([[cell.replace("±", "+-") for cell in line] for line in lines]))


def rows_table(rows: Sequence[Row]) -> str:
    """Return one Markdown line a student: the replicates behind the means."""
    measure = measure_of(rows)
    head = ["method", "variant", "pool", "seed", "backbone", "compensated", "steps", "seconds"]
    lines = [head]
    for row in rows:
        values = [wording.number(row.value(measure, part)) for part in ("backbone", "compensated")]
        name = [title_of(row.method), arm_title(row.variant)]
        seeds = [str(row.pool_seed), str(row.seed)]
        lines.append([*name, *seeds, *values, f"{row.num_steps:,}", wording.number(row.seconds)])
    return markdown(lines, num_names=2)


def _notes(rows: Sequence[Row], measure: Measure) -> list[str]:
    deploy = next((row.deploy for row in rows if row.variant == "kdci"), "backbone")
    notes = [
        f"Numbers: {wording.MEASURE_NOTES[measure]}; +- is half of a 95 % t-interval.",
        f"Paired difference: KDCI's {deploy} (the deployed one) minus vanilla, by replicate.",
        "Seconds a student: distillation alone, vanilla / KDCI.",
    ]
    if any(row.budget != 1 for row in rows):
        notes += textwrap.wrap(wording.BUDGET_NOTE, WIDTH)
    if has_further_arms(row for row in rows if not wording.is_shift(row.method)):
        notes += textwrap.wrap(wording.ARMS_NOTE, WIDTH)
    if any(wording.is_shift(row.method) for row in rows):
        notes += textwrap.wrap(f"{wording.SHIFTS_NOTE} {wording.COST_NOTE}", WIDTH)
    return notes


def _pair_title(row: Row) -> str:
    accuracy = ""
    if row.teacher_accuracy is not None:
        accuracy = f", teacher {wording.number(row.teacher_accuracy)} %"
    pair = f"{row.teacher} -> {row.student} on {row.dataset}"
    return f"{row.preset}: {pair}{accuracy}{wording.budget_text(row.budget)}"


def comparison_cells(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return head and lines of vanilla and KDCI, one a method of a teacher-student pair."""
    head = ["method", "vanilla", "KDCI backbone", "KDCI compensated", "paired difference", "n"]
    lines = [[*head, "seconds a student"]]
    for one in comparisons:
        paired, times = one.difference, wording.number(one.vanilla_seconds)
        kdci = [wording.UNKNOWN] * 4  # a control has nothing to say on it
        if not one.is_control:
            kdci = [wording.mean_text(one.backbone), wording.mean_text(one.compensated)]
            kdci += [wording.difference_text(paired), str(paired.n) if paired else wording.UNKNOWN]
            times += f" / {wording.number(one.kdci_seconds)}"
        lines.append([title_of(one.method), wording.mean_text(one.vanilla), *kdci, times])
    return lines
