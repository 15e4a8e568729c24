"""docs/estimate.md shows the committed comparison, and what it says of it is so."""

from __future__ import annotations

import json

from studies.estimated_time import KINDS, PAGE, RESULTS, table


def test_the_page_shows_the_committed_results() -> None:
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert "\n".join(table(record)) in PAGE.read_text(encoding="utf-8")
    assert {*record["real"]} == {"teacher", "dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd"}


def test_a_row_sums_what_is_counted() -> None:
    """Dictionaries are not."""
    seconds = {"pool": 1.0, "dictionary": 100.0, "student": 2.0, "evaluation": 3.0}
    record = {
        "real": {"teacher": {"teacher": 8.0}, "fast": seconds},
        "estimated": {
            "teacher": {"teacher": 6.0},
            "fast": {kind: 2 * seconds[kind] for kind in KINDS},
        },
        "preset": "digits",
        "budget": 1.0,
        "hardware": "a machine",
        "revision": "0123456789",
    }
    lines = list(table(record))
    assert lines[2] == "| teacher | - | - | - | 6.0 / 8.0 | 0.75 |"
    assert lines[3] == "| fast | 2.0 / 1.0 | 4.0 / 2.0 | 6.0 / 3.0 | 12.0 / 6.0 | 2.00 |"
