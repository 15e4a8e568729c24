"""Sections of the report on arms, on shifts, and on images that only one student got right.

Each is empty where there is nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.reporting.comparison import arms_of, compare_arms, compare_shifts, has_further_arms
from kdci.reporting.evidence import Evidence, PoolShift
from kdci.reporting.results import Quantity, Row, grouped, measure_of
from kdci.reporting.statistics import by_replicate, estimate, minus
from kdci.reporting.text import wording
from kdci.reporting.text.tables import arm_cells, by_pair, markdown, shift_cells
from kdci.substitution.registry import title_of

MAX_TESTS = 30
TESTED_ARMS = ("kdci", "kdci_stratified")
_SCALES: dict[Quantity, float] = {"marginal_bias": 100.0, "calibration_error": 1.0}
"""What makes percent of each."""


def arms_section(evidence: Evidence) -> str:
    """Return the table of all arms; empty where there are only vanilla and KDCI."""
    rows = evidence.method_rows
    if not has_further_arms(rows):
        return ""
    results = compare_arms(rows, measure_of(rows))
    summaries = "\n".join(f"- {arm_title(arm)}: {ARMS[arm].summary}" for arm in arms_of(rows))
    tables = by_pair(results, lambda own: markdown(arm_cells(own), num_names=2))
    return "\n\n".join([summaries, *tables, wording.ARMS_NOTE])


def known_shifts_section(evidence: Evidence) -> str:
    """Return the table of the pools with a known shift; empty where there are none."""
    rows = evidence.shift_rows
    results = compare_shifts(rows, measure_of(rows))
    tables = by_pair(results, lambda own: markdown(shift_cells(own)))
    return "\n\n".join([*tables, f"{wording.SHIFTS_NOTE} {wording.COST_NOTE}"]) if tables else ""


def mcnemar_section(evidence: Evidence) -> str:
    """Return McNemar's test of each KDCI student against its vanilla twin."""
    tested = [cell for cell in evidence.wanted if cell.variant in TESTED_ARMS]
    tests = [(cell, found) for cell in tested if (found := evidence.discordant(cell)) is not None]
    if not tests:
        return ""
    several = len({row.group for row in evidence.rows}) > 1
    lines = [["method", "arm", "pool", "seed", "b", "c", "p"]]
    for cell, found in tests[:MAX_TESTS]:
        row = evidence.row_of(cell)
        pair = f"{wording.pair_text(row.group)}, " if several and row else ""
        name = [pair + title_of(cell.method), arm_title(cell.variant)]
        counts = [str(found.lost), str(found.gained)]
        lines.append([*name, str(cell.pool_seed), str(cell.seed), *counts, wording.p_text(found.p)])
    parts = ["### McNemar's test", wording.MCNEMAR_NOTE, markdown(lines, num_names=2)]
    if len(tests) > MAX_TESTS:
        below = sum(found.p < 0.05 for _, found in tests[MAX_TESTS:])
        parts.append(f"{len(tests) - MAX_TESTS} more are not listed; p is below 0.05 in {below}.")
    return "\n\n".join(parts)


def distribution_shift(evidence: Evidence) -> str:
    """Return the tables of pools and of students; empty where neither was measured."""
    parts = []
    if evidence.pool_shifts:
        entropy = wording.number(math.log(evidence.spec.num_classes), 2)
        even = f"Entropy of a balanced pool: {entropy} nats."
        parts += [_pool_table(evidence.pool_shifts), f"{wording.POOL_SHIFT_NOTE} {even}"]
    rows = evidence.rows
    tested = [row for row in rows if row.value("marginal_bias", row.deployed) is not None]
    if tested:
        parts += [*by_pair(tested, _student_table), wording.STUDENT_SHIFT_NOTE]
    return "\n\n".join(parts)


def _pool_table(pools: Sequence[PoolShift]) -> str:
    head = ["pool", "teacher", "total variation", "entropy, nats", "confidence", "teacher-FID"]
    lines = [
        [
            pool.title,
            pool.teacher,
            wording.number(pool.total_variation, 2),
            wording.number(pool.entropy, 2),
            f"{wording.number(100 * pool.confidence)} %",
            wording.number(pool.teacher_fid),
        ]
        for pool in pools
    ]
    return markdown([head, *lines], num_names=2)


def _student_table(rows: Sequence[Row]) -> str:
    """Return a line for each arm of each pool."""
    lines = [["method", "arm", "marginal bias", "change", "calibration error", "change", "n"]]
    for own in grouped(rows, lambda row: row.method).values():
        plain = ["vanilla"] if any(row.variant == "vanilla" for row in own) else []
        lines += [_line(own, arm) for arm in (*plain, *arms_of(own))]
    return markdown(lines, num_names=2)


def _line(rows: Sequence[Row], arm: str) -> list[str]:
    own = [row for row in rows if row.variant == arm]
    cells = [title_of(own[0].method), arm_title(arm)]
    for quantity, scale in _SCALES.items():
        after = by_replicate(own, quantity, own[0].deployed)
        before = by_replicate((r for r in rows if r.variant == "vanilla"), quantity, "backbone")
        changes = [scale * value for value in minus(after, before).values()]
        cells.append(wording.mean_text(estimate([scale * value for value in after.values()])))
        cells.append(
            wording.UNKNOWN if arm == "vanilla" else wording.difference_text(estimate(changes))
        )
    return [*cells, str(len(own))]
