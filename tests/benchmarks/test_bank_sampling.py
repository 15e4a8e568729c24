from __future__ import annotations

import json

import pytest

from benchmarks.bank_sampling import BATCH, run


@pytest.mark.slow
def test_a_quick_run_tells_both_ways_in_numbers_that_fit_into_json() -> None:
    found = json.loads(json.dumps(run(quick=True)))
    assert found["batch_size"] == BATCH == 128
    assert found["batch_ms"] == found["ms"]["project"]["median"]
    assert found["times_plain"] == found["ms"]["plain"]["median"] / found["batch_ms"] > 1
    assert set(found["peak_bytes"]) == {"project", "plain"}
    assert f"{found['times_plain']:.0f} times as fast" in found["lines"][0]
