"""The report's section on distribution shift: how far pools are shifted, and what students keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdci.deconfounding.arms import arm_title
from kdci.reporting.arm_comparison import arms_of
from kdci.reporting.evidence import Evidence, PoolShift
from kdci.reporting.results import Quantity, Row, grouped
from kdci.reporting.statistics import by_replicate, estimate, minus
from kdci.reporting.text.text_table import by_pair, markdown
from kdci.reporting.text.wording import (
    POOL_SHIFT_NOTE,
    STUDENT_SHIFT_NOTE,
    UNKNOWN,
    difference_text,
    mean_text,
    number,
)
from kdci.substitution.registry import title_of

_SCALES: dict[Quantity, float] = {"marginal_bias": 100.0, "calibration_error": 1.0}
"""What makes percent of each."""


def distribution_shift(evidence: Evidence) -> str:
    """Return the tables of pools and of students; empty where neither was measured."""
    parts = []
    if evidence.pool_shifts:
        entropy = number(math.log(evidence.spec.num_classes), 2)
        even = f"Entropy of a balanced pool: {entropy} nats."
        parts += [_pool_table(evidence.pool_shifts), f"{POOL_SHIFT_NOTE} {even}"]
    rows = evidence.rows
    tested = [row for row in rows if row.value("marginal_bias", row.deployed) is not None]
    if tested:
        parts += [*by_pair(tested, _student_table), STUDENT_SHIFT_NOTE]
    return "\n\n".join(parts)


def _pool_table(pools: Sequence[PoolShift]) -> str:
    head = ["pool", "teacher", "total variation", "entropy, nats", "confidence", "teacher-FID"]
    lines = [
        [
            pool.title,
            pool.teacher,
            number(pool.total_variation, 2),
            number(pool.entropy, 2),
            f"{number(100 * pool.confidence)} %",
            number(pool.teacher_fid),
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
        cells.append(mean_text(estimate([scale * value for value in after.values()])))
        cells.append(UNKNOWN if arm == "vanilla" else difference_text(estimate(changes)))
    return [*cells, str(len(own))]
