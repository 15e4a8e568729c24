"""The benchmark of pools runs, and its claims follow from its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pool_scoring
from benchmarks.claims import Claim

CURVE = [
    {"num_images": 10, "seconds": 5.0, "peak_bytes": 200.0},
    {"num_images": 100, "seconds": 8.0, "peak_bytes": 210.0},
    {"num_images": 1000, "seconds": 100.0, "peak_bytes": 230.0},
]


def test_claims_follow_from_the_numbers() -> None:
    rate = {"share_percent": 61.0}
    share, linear, flat = (Claim(**stated) for stated in pool_scoring._claims(rate, CURVE))
    assert (share.value, share.met) == (61.0, True)
    assert (linear.value, linear.met) == (pytest.approx(1.25), True)
    assert (flat.value, flat.met) == (pytest.approx(1.15), False)
    assert Claim(**pool_scoring._claims(None, CURVE)[0]).verdict == "not run"


def test_a_rate_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_scoring, "NUM_SELECTED", 30)
    monkeypatch.setattr(pool_scoring, "BATCH", 16)
    monkeypatch.setattr(pool_scoring, "_TEACHER", "wrn-10-1")
    pool_scoring._write_photographs(tmp_path / "a.parquet", 40)
    rate = pool_scoring.scoring_rate(tmp_path, None, num_images=35, repeats=2)
    assert (rate["num_images"], rate["n"]) == (35, 2)
    assert rate["scored_per_second"] > 0 and rate["share_percent"] > 0
    assert "35 images decoded and scored" in pool_scoring._rate_lines(rate)[0]
    point = pool_scoring.choose_from(tmp_path)
    assert point["num_images"] == 40 and point["peak_bytes"] > 10**7
