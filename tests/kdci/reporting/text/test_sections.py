from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kdci.reporting.evidence import PoolShift
from kdci.reporting.text.markdown import report_text
from kdci.reporting.text.sections import (
    MAX_TESTS,
    arms_section,
    distribution_shift,
    known_shifts_section,
    mcnemar_section,
)
from kdci.store.layout import Cell

PAIR = ("wrn-16-1", "wrn-10-1")


@pytest.fixture
def with_arms(evidence, row):
    """A method with a further arm, and two pools with a known shift."""
    rows = [
        *evidence.rows,
        row("class_balanced", 0, accuracy_backbone=95.0),
        row("class_balanced", 1, accuracy_backbone=99.0),
        *(
            row(variant, seed, method=method, accuracy_backbone=value)
            for method, values in (("balanced", (90.0, 91.0)), ("blur", (70.0, 74.0)))
            for variant, value in zip(("vanilla", "stratified"), values, strict=True)
            for seed in (0, 1)
        ),
    ]
    wanted = [
        *evidence.wanted,
        *(Cell(*PAIR, method, "vanilla", 0, 0) for method in ("balanced", "blur")),
    ]
    return replace(evidence, rows=rows, wanted=wanted, shifts=("balanced", "blur"))


def _tables(text):
    """Return the blocks of lines that are tables."""
    return [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]


def test_arms_have_a_table_and_a_line_on_what_they_are(with_arms):
    text = arms_section(with_arms)
    assert "- class-balanced: batches drawn evenly over the teacher's classes" in text
    assert "- KDCI: bias compensation" in text
    (table,) = _tables(text)
    assert len({line.count("|") for line in table}) == 1
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| Fast", "KDCI"],
        ["| Fast", "class-balanced"],
    ]
    assert "blur" not in text
    assert "paired Student's t-test" in text


def test_known_shifts_have_a_table_with_what_they_cost(with_arms):
    text = known_shifts_section(with_arms)
    (table,) = _tables(text)
    assert table[0] == "| shift | vanilla | vanilla - balanced | stratified | n |"
    assert table[3].startswith("| blur | 70.0 ± 0.0 | -20.0 (")
    assert "Fast" not in text


def test_without_arms_or_shifts_there_is_nothing(evidence):
    assert arms_section(evidence) == known_shifts_section(evidence) == ""
    text = report_text(evidence, [])
    for section in ("Arms", "Known shifts", "Distribution shift", "McNemar"):
        assert section not in text


def test_the_report_keeps_shifts_out_of_the_comparison_of_methods(with_arms, evidence):
    text = report_text(with_arms, [])
    opening = text[: text.index("## Arms")]
    assert opening == report_text(evidence, [])[: len(opening)]
    assert text.index("## Arms") < text.index("## Known shifts") < text.index("## Setting")
    assert "blur" not in opening


def _predicted(evidence, method="fast", seeds=(0,), **classes):
    """Ten test images, all of class 1; what students say of them by variant."""
    known = {"expected": np.ones(10, np.int16)}
    for seed in seeds:
        for variant, said in classes.items():
            known[f"{variant}/pool0-seed{seed}/backbone"] = np.array(said, np.int16)
    return replace(evidence, predictions={**evidence.predictions, (*PAIR, method): known})


VANILLA = [1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
ARM = [1, 0, 1, 1, 1, 1, 1, 0, 1, 0]


def test_mcnemar_counts_what_only_one_is_right_on(evidence):
    text = mcnemar_section(_predicted(evidence, vanilla=VANILLA, kdci=ARM))
    # b = 1, c = 5: 2 (1 + 6) / 2^6
    assert "| Fast | KDCI | 0 | 0 | 1 | 5 | 0.219 |" in text
    assert len(_tables(text)[0]) == 3, "seed 1 and DFND have no predictions"


def test_mcnemar_is_about_the_deployed_prediction(evidence):
    known = _predicted(evidence, vanilla=VANILLA, kdci=ARM)
    known.predictions[(*PAIR, "fast")]["kdci/pool0-seed0/compensated"] = np.ones(10, np.int16)
    rows = [replace(row, deploy="compensated") for row in known.rows]
    assert "| 0 | 7 | 0.016 |" in mcnemar_section(replace(known, rows=rows))


def test_without_test_images_there_is_no_mcnemar(evidence):
    assert mcnemar_section(evidence) == ""
    assert mcnemar_section(_predicted(evidence, vanilla=VANILLA)) == ""


def test_a_long_list_of_tests_is_cut_and_the_rest_counted(evidence, row):
    seeds = range(MAX_TESTS + 4)
    many = replace(
        evidence,
        wanted=[Cell(*PAIR, "fast", "kdci", 0, seed) for seed in seeds],
        rows=[row("kdci", seed) for seed in seeds],
    )
    text = mcnemar_section(_predicted(many, seeds=seeds, vanilla=VANILLA, kdci=ARM))
    assert len(_tables(text)[0]) == 2 + MAX_TESTS
    assert "4 more are not listed; p is below 0.05 in 0." in text


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
