from __future__ import annotations

from dataclasses import replace

import pytest

from kdci.reporting.evidence import PoolShift
from kdci.reporting.text.markdown import report_text
from kdci.reporting.text.shift_section import distribution_shift


@pytest.fixture
def measured(evidence, row):
    """Two seeds: the arm's bias is lower by 0.1 and 0.3, its calibration error by 1 and 3."""
    rows = [
        row("vanilla", 0, marginal_bias_backbone=0.3, calibration_error_backbone=10.0),
        row("vanilla", 1, marginal_bias_backbone=0.5, calibration_error_backbone=20.0),
        row("class_balanced", 0, marginal_bias_backbone=0.2, calibration_error_backbone=9.0),
        row("class_balanced", 1, marginal_bias_backbone=0.2, calibration_error_backbone=17.0),
    ]
    pools = [
        PoolShift("wrn-16-1", "dfnd", 0, 0.64, 1.234, 0.876, 12.345),
        PoolShift("wrn-16-1", "long-tail", 0, 0.5, 1.5, 0.9, None),
    ]
    return replace(evidence, rows=rows, pool_shifts=pools, shifts=("long-tail",))


def test_each_pool_says_how_far_it_is_shifted(measured):
    text = distribution_shift(measured)
    assert "| DFND, pool 0 | wrn-16-1 | 0.64 | 1.23 | 87.6 % | 12.3 |" in text
    assert "| long-tail, pool 0 | wrn-16-1 | 0.50 | 1.50 | 90.0 % | - |" in text
    assert "Entropy of a balanced pool: 2.30 nats" in text  # log 10
    assert "It is no FID" in text


def test_each_arm_says_what_it_changes_of_bias_and_calibration(measured):
    text = distribution_shift(measured)
    # -10 and -30: mean -20, half of it 12.7062 * 10; the spread of 30 and 50 is the same.
    assert "| Fast | vanilla | 40.0 ± 127.1 | - | 15.0 ± 63.5 | - | 2 |" in text
    assert (
        "| Fast | class-balanced | 20.0 ± 0.0 | -20.0 (-147.1 to 107.1) | 13.0 ± 50.8 "
        "| -2.0 (-14.7 to 10.7) | 2 |"
    ) in text


def test_a_deployed_module_is_what_is_measured(measured, row):
    rows = [
        *measured.rows[:2],
        row("kdci", 0, deploy="compensated", marginal_bias_backbone=0.9,
            marginal_bias_compensated=0.1, calibration_error_compensated=4.0),
    ]  # fmt: skip
    text = distribution_shift(replace(measured, rows=rows))
    assert "| Fast | KDCI | 10.0 (n = 1) | -20.0 (n = 1) | 4.0 (n = 1) | -6.0 (n = 1) | 1 |" in text


def test_what_was_not_measured_is_left_out(evidence, measured):
    assert distribution_shift(evidence) == ""
    untested = distribution_shift(replace(measured, rows=evidence.rows))
    assert "teacher-FID" in untested
    assert "Marginal bias" not in untested
    assert "## Distribution shift" in report_text(measured, [])
