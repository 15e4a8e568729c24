"""docs/performance.md says what benchmarks/results.json says, and what of it is met."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page, results
from benchmarks.claims import Claim, claims

STORED = results.read(results.FILE)


def measured(project: float, plain: float, bound: float) -> dict[str, Any]:
    times = {"project": project, "plain": plain, "bound": bound}
    return {
        "kind": "kd_step",
        "method": "fast",
        "teacher": "wrn-40-2",
        "student": "wrn-16-1",
        "batch_size": 128,
        "n": 3,
        "note": "",
        "ms": {way: {"median": ms, "low": ms - 1, "high": ms + 1} for way, ms in times.items()},
        "times_plain": {"project": plain / project},
        "share_of_bound": {"project": bound / project},
        "processor_times_plain": {"project": 2.5},
        "processor_share_of_bound": {"project": 0.8},
        "peak_bytes": {"project": 50_000_000, "plain": 70_000_000},
        "num_workers": 1,
        "formats": {"wrn-40-2 frozen": "fp32 contiguous"},
        "hardware": "a machine",
        "threads": 1,
        "torch": "2.9",
        "revision": "0123456789+dirty",
        "date": "2026-01-01",
    }


KEY = "kd_step/fast/wrn-40-2-wrn-16-1"
RESULTS: results.Results = {results.STEPS: {KEY: measured(100, 450, 60)}}


def test_the_tables_are_those_of_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, STORED) == text
    assert set(re.findall(r"<!-- ([a-z_]+) -->", text)) >= {"claims", "kd_step", "machines"}


def test_accuracies_are_those_of_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "STUDIES", tmp_path)
    assert page.block("accuracy_digits", {}) == page.NOT_RUN
    (tmp_path / "digits.json").write_text('{"table": ["| a |", "| b |"]}')
    assert page.block("accuracy_digits", {}) == "| a |\n| b |\n"


@pytest.mark.parametrize("preset", sorted(page.ACCURACIES.values()))
def test_the_study_was_made_at_a_commit(preset: str) -> None:
    kept = json.loads((page.STUDIES / f"{preset}.json").read_text())
    assert kept["preset"] == preset and "+dirty" not in kept["revision"]
    assert {row["setting"] for row in kept["rows"]} == {"fp32 contiguous", "as it comes"}


def test_a_changed_result_changes_the_page() -> None:
    text = "<!-- kd_step -->\nold\n<!-- end -->\n"
    filled = page.filled(text, RESULTS)
    (line,) = [line for line in filled.splitlines() if line.startswith("| fast")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "fast, wrn-40-2 to wrn-16-1",
        "128",
        "3",
        "100 (99 to 101)",
        "450 (449 to 451)",
        "60 (59 to 61)",
        "4.50 (2.50)",
        "60 % (80 %)",
        "50 MB / 70 MB",
    ]
    assert "old" not in filled


def test_other_settings_have_a_table_of_their_own() -> None:
    found = copy.deepcopy(RESULTS)
    found[results.STEPS][f"{KEY}/compile=both"] = measured(50, 400, 60)
    assert page.block("kd_step", found) == page.block("kd_step", RESULTS)
    step = "kd step, fast, wrn-40-2 to wrn-16-1"
    line = f"| {step} | compile=both | 3 | 50 | 8.00 (2.50) | 120 % (80 %) |"
    assert line in page.block("settings", found)
    assert page.block("settings", RESULTS) == page.NOT_RUN


def test_the_machine_is_named_once() -> None:
    found = copy.deepcopy(RESULTS)
    found[results.STEPS]["another"] = measured(1, 2, 3)
    line = page.block("machines", found)
    assert (
        line.startswith("- a machine, 1 threads, fp32 contiguous, torch 2.9") and "0123456+" in line
    )
    assert line.endswith(": 2 cases\n")


def test_an_unknown_block_is_refused() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        page.filled("<!-- nonsense -->\n<!-- end -->\n", {})


def test_blocks_without_results_say_so() -> None:
    for name in ("kd_step", "start_up", "machines"):
        assert page.block(name, {}) == "not run\n"
    assert page.block("start_up", {"start_up": {"lines": ["1 s"]}}) == "- 1 s\n"
    assert page.block("start_up", {"start_up": {"table": "| a |"}}) == "| a |\n"


def by_name(found: results.Results) -> dict[str, Claim]:
    return {claim.name: claim for claim in claims(found)}


def test_claims_are_met_or_not_or_not_run() -> None:
    found = by_name(RESULTS)
    step = "KD step of fast, wrn-40-2 to wrn-16-1, batch 128"
    assert found[f"{step}: times the plain baseline"].verdict == "met"
    assert found[f"{step}: share of the bound"].verdict == "not met"
    assert found[f"{step}: share of the bound"].value == pytest.approx(60)
    others = [claim for name, claim in found.items() if not name.startswith(step)]
    assert len(others) > 10 and {claim.verdict for claim in others} == {"not run"}


def test_sampling_is_a_share_of_the_step() -> None:
    found = by_name({**RESULTS, "bank_sampling": {"batch_ms": 1.5}})
    (sampling,) = [claim for name, claim in found.items() if "sampling" in name]
    assert sampling.value == pytest.approx(1.5) and sampling.verdict == "met"


def test_other_benchmarks_state_their_own_claims() -> None:
    stated = {"name": "start", "value": 3.5, "limit": 3.0, "at_least": False, "unit": "s"}
    found = by_name({"start_up": {"claims": [stated]}})
    assert found["start"].verdict == "not met"
