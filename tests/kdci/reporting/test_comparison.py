from __future__ import annotations

from dataclasses import replace

import pytest
from scipy import stats

from kdci.deconfounding.arms import ARMS
from kdci.reporting.comparison import (
    arms_of,
    compare,
    compare_arms,
    compare_shifts,
    has_further_arms,
    metrics_tree,
)
from kdci.reporting.statistics import paired_differences


def test_differences_are_paired_by_pool_and_seed_whatever_the_order(row):
    rows = [
        row("kdci", 1, pool_seed=7, accuracy_backbone=53.0),
        row("vanilla", 0, pool_seed=7, accuracy_backbone=90.0),
        row("vanilla", 1, pool_seed=7, accuracy_backbone=50.0),
        row("kdci", 0, pool_seed=7, accuracy_backbone=91.0),
        row("kdci", 1, pool_seed=8, accuracy_backbone=10.0),  # no vanilla of this pool
    ]
    found = paired_differences(rows, "accuracy", arm="kdci", part="backbone")
    assert found == {(7, 0): 1.0, (7, 1): 3.0}


def test_paired_interval_is_narrow_where_replicates_vary_together(row):
    pairs = [(10.0, 11.0), (50.0, 51.5), (90.0, 90.5)]
    rows = [row("vanilla", seed, accuracy_backbone=a) for seed, (a, _) in enumerate(pairs)]
    rows += [row("kdci", seed, accuracy_backbone=b) for seed, (_, b) in enumerate(pairs)]
    (one,) = compare(rows)
    assert one.difference.mean == pytest.approx(1.0)
    assert one.difference.half_width == pytest.approx(4.302653 * 0.5 / 3**0.5, abs=1e-5)
    assert one.vanilla.half_width > 90


def test_compensated_is_compared_with_vanillas_backbone(row):
    rows = [row("vanilla"), row("kdci", accuracy_backbone=89.0, accuracy_compensated=94.0)]
    (one,) = compare(rows)
    assert one.gains == {"backbone": {(0, 0): -1.0}, "compensated": {(0, 0): 4.0}}
    assert one.difference.mean == -1.0
    deployed = [row("vanilla"), row("kdci", accuracy_compensated=94.0, deploy="compensated")]
    (one,) = compare(deployed)
    assert one.difference.mean == 4.0
    assert one.mean.mean == 94.0


def test_without_test_data_agreement_is_compared(row):
    untested = {"accuracy": None, "accuracy_backbone": None, "accuracy_compensated": None}
    rows = [row("vanilla", **untested), row("kdci", agreement_backbone=85.0, **untested)]
    (one,) = compare(rows)
    assert one.measure == "agreement"
    assert one.difference.mean == 5.0
    assert metrics_tree([one])["fast"]["difference_agreement"] == 5.0
    assert "difference" not in metrics_tree([one])["fast"]


def test_a_wanted_comparison_that_was_not_run_is_there_and_empty(row):
    keys = [("wrn-16-1", "wrn-10-1", "dafl"), ("wrn-16-1", "wrn-10-1", "fast")]
    dafl, fast = compare([row("vanilla")], keys)
    assert dafl.method == "dafl"
    assert dafl.vanilla is None
    assert fast.vanilla.mean == 90.0
    assert fast.difference is None
    assert metrics_tree([dafl, fast]) == {"fast": {"vanilla": 90.0}}


def test_metrics_name_the_pair_only_where_there_are_several(row):
    one_pair = [row("vanilla"), row("kdci", accuracy_backbone=92.0)]
    assert metrics_tree(compare(one_pair))["fast"] == {
        "vanilla": 90.0,
        "kdci": 92.0,
        "kdci_backbone": 92.0,
        "kdci_compensated": 91.0,
        "difference": 2.0,
    }
    two_pairs = [*one_pair, row("vanilla", student="wrn-40-1", accuracy_backbone=80.0)]
    tree = metrics_tree(compare(two_pairs))
    assert tree["wrn-16-1-wrn-10-1"]["fast"]["vanilla"] == 90.0
    assert tree["wrn-16-1-wrn-40-1"] == {"fast": {"vanilla": 80.0}}


def test_metrics_hold_what_further_arms_gain_on_each_method_and_on_all(row):
    rows = [
        row(variant, method=method, accuracy_backbone=value)
        for method, values in (("fast", (90.0, 92.0, 95.0)), ("dfnd", (20.0, 19.0, 33.0)))
        for variant, value in zip(("vanilla", "kdci", "stratified"), values, strict=True)
    ]
    plain = metrics_tree(compare(rows))
    tree = metrics_tree(compare(rows), compare_arms(rows, "accuracy"))
    assert tree["fast"] == {**plain["fast"], "stratified": 95.0, "difference_stratified": 5.0}
    assert tree["dfnd"]["difference_stratified"] == 13.0
    assert tree["all_methods"] == {"difference_kdci": 0.5, "difference_stratified": 9.0}
    untested = [row(one.variant, method=one.method, accuracy_backbone=None) for one in rows]
    arms = compare_arms(untested, "agreement")
    assert "difference_stratified_agreement" in metrics_tree(compare(untested), arms)["fast"]


def test_seconds_are_means_over_the_students_whose_times_are_known(row):
    rows = [row("vanilla", 0, seconds=4.0), row("vanilla", 1, seconds=None)]
    (one,) = compare([*rows, row("vanilla", 2, seconds=6.0)])
    assert one.vanilla_seconds == 5.0
    assert one.kdci_seconds is None


def test_budgets_are_compared_each_for_itself(row):
    rows = [
        row("vanilla", 0, accuracy_backbone=90.0),
        row("kdci", 0, accuracy_backbone=91.0),
        row("vanilla", 1, accuracy_backbone=50.0, budget=0.1),
        row("kdci", 1, accuracy_backbone=40.0, budget=0.1),
        row("kdci", 2, accuracy_backbone=80.0, budget=0.1),  # its vanilla has the whole budget
        row("vanilla", 2, accuracy_backbone=90.0),
    ]
    whole, tenth = compare(rows)
    assert (whole.group.budget, whole.vanilla.n, whole.difference.mean) == (1.0, 2, 1.0)
    assert (tenth.group.budget, tenth.backbone.mean, tenth.difference.mean) == (0.1, 60.0, -10.0)
    assert tenth.difference.n == 1
    assert list(tenth.gains["backbone"]) == [(0, 1)]
    tree = metrics_tree([whole, tenth])
    assert tree["fast@1"]["difference"] == 1.0
    assert tree["fast@0.1"]["difference"] == -10.0
    with pytest.raises(ValueError, match="several budgets"):
        paired_differences(rows, "accuracy", arm="kdci", part="backbone")


def test_what_was_not_run_has_the_budget_of_what_was(row):
    keys = [("wrn-16-1", "wrn-10-1", name) for name in ("dafl", "fast")]
    dafl, fast = compare([row("vanilla", budget=0.25)], keys)
    assert (dafl.vanilla, dafl.group.budget, fast.group.budget) == (None, 0.25, 0.25)
    assert compare([], keys)[0].group.budget == 1.0
    assert "fast" in metrics_tree([dafl, fast]), "one budget needs no name"


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
