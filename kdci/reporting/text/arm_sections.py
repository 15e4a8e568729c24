"""Sections of the report on arms, on known shifts, and on images that only one student got right.

Each is empty where there is nothing to say.
"""

from __future__ import annotations

from kdci.deconfounding.arms import ARMS, arm_title
from kdci.reporting.arm_comparison import (
    arms_of,
    compare_arms,
    compare_shifts,
    has_further_arms,
)
from kdci.reporting.evidence import Evidence
from kdci.reporting.results import measure_of
from kdci.reporting.text.arm_tables import arm_cells, shift_cells
from kdci.reporting.text.text_table import by_pair, markdown
from kdci.reporting.text.wording import (
    ARMS_NOTE,
    COST_NOTE,
    MCNEMAR_NOTE,
    SHIFTS_NOTE,
    p_text,
    pair_text,
)
from kdci.substitution.registry import title_of

MAX_TESTS = 30
TESTED_ARMS = ("kdci", "kdci_stratified")


def arms_section(evidence: Evidence) -> str:
    """Return the table of all arms; empty where there are only vanilla and KDCI."""
    rows = evidence.method_rows
    if not has_further_arms(rows):
        return ""
    results = compare_arms(rows, measure_of(rows))
    summaries = "\n".join(f"- {arm_title(arm)}: {ARMS[arm].summary}" for arm in arms_of(rows))
    tables = by_pair(results, lambda own: markdown(arm_cells(own), num_names=2))
    return "\n\n".join([summaries, *tables, ARMS_NOTE])


def known_shifts_section(evidence: Evidence) -> str:
    """Return the table of the pools with a known shift; empty where there are none."""
    rows = evidence.shift_rows
    results = compare_shifts(rows, measure_of(rows))
    tables = by_pair(results, lambda own: markdown(shift_cells(own)))
    return "\n\n".join([*tables, f"{SHIFTS_NOTE} {COST_NOTE}"]) if tables else ""


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
        pair = f"{pair_text(row.group)}, " if several and row else ""
        name = [pair + title_of(cell.method), arm_title(cell.variant)]
        counts = [str(found.lost), str(found.gained)]
        lines.append([*name, str(cell.pool_seed), str(cell.seed), *counts, p_text(found.p)])
    parts = ["### McNemar's test", MCNEMAR_NOTE, markdown(lines, num_names=2)]
    if len(tests) > MAX_TESTS:
        below = sum(found.p < 0.05 for _, found in tests[MAX_TESTS:])
        parts.append(f"{len(tests) - MAX_TESTS} more are not listed; p is below 0.05 in {below}.")
    return "\n\n".join(parts)
