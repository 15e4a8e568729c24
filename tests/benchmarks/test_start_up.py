from __future__ import annotations

import json

import pytest

from benchmarks.start_up import MOST_SECONDS, run

KINDS = {
    "teacher",
    "substitute",
    "dictionary",
    "distill_vanilla",
    "distill_kdci",
    "evaluate",
    "report",
}


@pytest.mark.slow
def test_a_quick_run_measures_every_kind_of_stage_and_a_repro_that_does_nothing() -> None:
    found = json.loads(json.dumps(run(quick=True)))
    stages = found["first_step"]["stages"]
    assert set(stages) == KINDS
    # By the clock the tests beside this one would count.
    assert max(of["computed_beyond_torch"] for of in stages.values()) < MOST_SECONDS
    assert stages["report"]["computed_beyond_torch"] < 0, "it has no use for torch"
    nothing = found["nothing_to_do"]
    assert nothing["num_stages"] == 13  # with that which renews the cells
    assert nothing["num_dependencies"] > nothing["num_stages"]
    assert min(nothing["computed_times_one_dependency"], nothing["computed_times_floor"]) > 0.5
    assert [claim["limit"] for claim in found["claims"]] == [3.0, 1.5]
