from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from kdci.deconfounding.arms import ARMS
from kdci.reporting.arm_comparison import (
    arms_of,
    compare_arms,
    compare_shifts,
    has_further_arms,
)


@pytest.fixture
def rows(row):
    """Two methods, three seeds: balanced batches give 1, 2, 3 to Fast and 5, 3, 7 to DFND."""
    found = []
    for method, gains in (("fast", (1.0, 2.0, 3.0)), ("dfnd", (5.0, 3.0, 7.0))):
        for seed, gain in enumerate(gains):
            vanilla = 50.0 + 10 * seed
            found += [
                row("class_balanced", seed, method=method, accuracy_backbone=vanilla + gain,
                    accuracy_compensated=None),
                row("kdci", seed, method=method, accuracy_backbone=vanilla + 1),
                row("vanilla", seed, method=method, accuracy_backbone=vanilla),
            ]  # fmt: skip
    return found


def _found(results):
    return {(one.method, one.arm): one for one in results}


def test_each_arm_of_each_method_and_then_of_all_in_the_order_of_arms(rows):
    results = compare_arms(rows, "accuracy")
    assert [(one.method, one.arm) for one in results] == [
        ("fast", "kdci"), ("fast", "class_balanced"), ("dfnd", "kdci"), ("dfnd", "class_balanced"),
        (None, "kdci"), (None, "class_balanced"),
    ]  # fmt: skip
    assert arms_of(rows) == ["kdci", "class_balanced"]
    assert list(ARMS).index("kdci") < list(ARMS).index("class_balanced")


def test_an_arm_is_tested_against_the_vanilla_of_its_replicate(rows):
    one = _found(compare_arms(rows, "accuracy"))["dfnd", "class_balanced"]
    assert one.paired == {(0, 0): 5.0, (0, 1): 3.0, (0, 2): 7.0}
    assert one.difference.mean == 5.0
    assert one.backbone.mean == 65.0
    assert one.compensated is None
    assert one.p == pytest.approx(stats.ttest_1samp([5.0, 3.0, 7.0], 0).pvalue)


def test_over_methods_the_samples_are_replicates(rows):
    pooled = _found(compare_arms(rows, "accuracy"))[None, "class_balanced"]
    assert pooled.paired == {(0, 0): 3.0, (0, 1): 2.5, (0, 2): 5.0}
    assert (pooled.difference.n, pooled.num_methods) == (3, 2)
    assert pooled.p == pytest.approx(stats.ttest_1samp([3.0, 2.5, 5.0], 0).pvalue)
    assert (pooled.backbone, pooled.compensated) == (None, None)


def test_p_values_are_adjusted_within_single_methods_and_within_all_of_them(rows):
    found = _found(compare_arms(rows, "accuracy"))
    fast, dfnd = found["fast", "class_balanced"], found["dfnd", "class_balanced"]
    assert found["fast", "kdci"].p is None, "always the same: there is nothing to test"
    smaller, larger = sorted((fast.p, dfnd.p))
    assert {fast.adjusted_p, dfnd.adjusted_p} == {2 * smaller, max(2 * smaller, larger)}
    pooled = found[None, "class_balanced"]
    assert pooled.adjusted_p == pooled.p


def test_one_method_is_not_pooled_and_a_control_has_no_arms(rows, row):
    fast = [one for one in rows if one.method == "fast"]
    noise = row("vanilla", method="noise", accuracy_backbone=10.0)
    results = compare_arms([*fast, noise], "accuracy")
    assert {one.method for one in results} == {"fast"}
    assert compare_arms([noise], "accuracy") == []


def test_a_method_that_lacks_an_arm_is_there_and_left_out_of_the_pool(rows):
    half_done = [one for one in rows if (one.method, one.variant) != ("dfnd", "class_balanced")]
    found = _found(compare_arms(half_done, "accuracy"))
    assert found["dfnd", "class_balanced"].difference is None
    pooled = found[None, "class_balanced"]
    assert pooled.paired == found["fast", "class_balanced"].paired
    assert (pooled.num_methods, found[None, "kdci"].num_methods) == (1, 2)


def test_the_deployed_prediction_of_an_arm_is_compared(row):
    rows = [
        row("vanilla", accuracy_backbone=90.0, deploy="compensated"),
        row("kdci_stratified", accuracy_backbone=80.0, accuracy_compensated=95.0,
            deploy="compensated"),
        row("stratified", accuracy_backbone=93.0, accuracy_compensated=None,
            deploy="compensated"),
    ]  # fmt: skip
    found = _found(compare_arms(rows, "accuracy"))
    both, strata = found["fast", "kdci_stratified"], found["fast", "stratified"]
    assert (both.deploy, both.difference.mean, both.mean.mean) == ("compensated", 5.0, 95.0)
    assert (strata.deploy, strata.difference.mean) == ("backbone", 3.0), "it has no module"
    assert both.p is None


def test_pairs_are_compared_apart(rows, row):
    other = [row("vanilla", student="wrn-40-1"), row("kdci", student="wrn-40-1")]
    results = compare_arms([*rows, *other], "accuracy")
    assert [one.method for one in results if one.group.student == "wrn-40-1"] == ["fast"]
    assert not [one for one in results if one.group.student == "wrn-40-1" and one.method is None]


def test_only_vanilla_and_kdci_are_no_further_arms(rows, row):
    assert has_further_arms(rows)
    assert not has_further_arms([row("vanilla"), row("kdci")])


@pytest.fixture
def shift_rows(row):
    found = []
    for method, values in (("balanced", (90.0, 92.0)), ("long-tail", (80.0, 85.0))):
        for seed, value in enumerate(values):
            gained = value + (2 * seed + 1 if method == "long-tail" else 0)
            found += [
                row("vanilla", seed, method=method, accuracy_backbone=value),
                row("stratified", seed, method=method, accuracy_backbone=gained),
            ]
    return found


def test_what_a_shift_costs_is_paired_with_the_balanced_pool(shift_rows):
    balanced, long_tail = compare_shifts(shift_rows, "accuracy")
    assert (balanced.shift, balanced.cost, balanced.vanilla.mean) == ("balanced", None, 91.0)
    assert (long_tail.cost.mean, long_tail.cost.n) == (-8.5, 2)
    # -10 and -7: standard deviation 3 / sqrt(2), t(0.975, 1) = 12.7062
    assert long_tail.cost.half_width == pytest.approx(12.7062 * 1.5, rel=1e-4)
    (arm,) = long_tail.arms
    assert arm.paired == {(0, 0): 1.0, (0, 1): 3.0}


def test_without_a_balanced_pool_no_cost_is_known(shift_rows):
    (long_tail,) = compare_shifts(shift_rows[4:], "accuracy")
    assert long_tail.cost is None
    assert long_tail.vanilla.mean == 82.5
    assert compare_shifts([], "accuracy") == []


def test_budgets_are_compared_apart(rows, shift_rows):
    tenth = [replace(one, budget=0.1, accuracy_backbone=1.0) for one in rows]
    whole = compare_arms(rows, "accuracy")
    both = compare_arms([*rows, *tenth], "accuracy")
    assert both[: len(whole)] == whole
    assert {one.group.budget for one in both[len(whole) :]} == {0.1}
    assert {one.difference.mean for one in both[len(whole) :]} == {0.0}
    other = [replace(one, budget=0.1, accuracy_backbone=1.0) for one in shift_rows]
    shifts = compare_shifts([*shift_rows, *other[4:]], "accuracy")
    assert shifts[:2] == compare_shifts(shift_rows, "accuracy")
    assert (shifts[2].group.budget, shifts[2].cost) == (0.1, None), "the balanced pool is another's"
