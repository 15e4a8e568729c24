from __future__ import annotations

import pytest

from kdci.reporting.arm_comparison import compare_arms
from kdci.reporting.comparison import compare, metrics_tree
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
