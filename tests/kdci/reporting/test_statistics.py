from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from kdci.reporting.statistics import (
    Discordant,
    by_replicate,
    estimate,
    holm,
    mcnemar,
    minus,
    paired_differences,
    paired_t_test,
    pooled_differences,
)


def test_interval_of_three_values_as_computed_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653 (any table), 4.302653 / sqrt(3)
    known = estimate([1.0, 2.0, 3.0])
    assert known.mean == 2.0
    assert known.n == 3
    assert known.interval == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)


def test_interval_is_scipys(values=(91.2, 90.1, 93.7, 92.2, 90.8)):
    known = estimate(values)
    expected = stats.t.interval(0.95, len(values) - 1, loc=known.mean, scale=stats.sem(values))
    assert known.interval == pytest.approx(expected)


def test_one_value_has_no_interval_and_none_no_estimate():
    assert estimate([5.0]).interval is None
    assert estimate([5.0]).half_width is None
    assert estimate([]) is None


def test_the_test_is_scipys_paired_t_test():
    random = np.random.default_rng(0)
    for n in (2, 3, 5, 20):
        before, after = random.normal(90, 3, n), random.normal(91, 3, n)
        expected = stats.ttest_rel(after, before).pvalue
        assert paired_t_test([float(value) for value in after - before]) == pytest.approx(expected)


def test_of_two_differences_p_is_that_of_cauchy():
    # One degree of freedom: P(|T| > t) = 1 - 2 atan(t) / pi; 1 and 3 have t = 2 / (sqrt(2)/sqrt(2))
    assert paired_t_test([1.0, 3.0]) == pytest.approx(1 - 2 * np.arctan(2.0) / np.pi)


def test_p_is_below_5_percent_where_the_interval_is_off_zero():
    for shift in np.linspace(-3, 3, 25):
        values = [float(shift + extra) for extra in (-0.7, 0.1, 0.9, 0.2)]
        low, high = estimate(values).interval
        assert (paired_t_test(values) < 0.05) == (low > 0 or high < 0)


@pytest.mark.parametrize("values", [[], [2.0], [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3]])
def test_nothing_is_tested_on_one_replicate_or_without_spread(values):
    assert paired_t_test(values) is None


def test_differences_of_any_arm_are_paired_by_pool_and_seed_whatever_the_order(row):
    rows = [
        row("class_balanced", 1, pool_seed=7, accuracy_backbone=53.0),
        row("kdci", 0, pool_seed=7, accuracy_backbone=10.0, accuracy_compensated=96.0),
        row("vanilla", 0, pool_seed=7, accuracy_backbone=90.0),
        row("vanilla", 1, pool_seed=7, accuracy_backbone=50.0),
        row("class_balanced", 0, pool_seed=7, accuracy_backbone=91.0),
        row("class_balanced", 1, pool_seed=8, accuracy_backbone=10.0),  # no vanilla of this pool
    ]
    found = paired_differences(rows, "accuracy", arm="class_balanced", part="backbone")
    assert found == {(7, 0): 1.0, (7, 1): 3.0}
    assert list(found) == [(7, 0), (7, 1)]
    compensated = paired_differences(rows, "accuracy", arm="kdci", part="compensated")
    assert compensated == {(7, 0): 6.0}, "vanilla has its backbone alone"


def test_whatever_a_row_knows_is_compared(row):
    rows = [
        row("vanilla", marginal_bias_backbone=0.5),
        row("vanilla", 1),
        row("stratified", marginal_bias_backbone=0.25),
    ]
    found = paired_differences(rows, "marginal_bias", arm="stratified", part="backbone")
    assert found == {(0, 0): -0.25}
    assert by_replicate(rows[:2], "marginal_bias", "backbone") == {(0, 0): 0.5}


def test_methods_are_averaged_within_the_replicates_they_share():
    fast = {(0, 0): 1.0, (0, 1): 2.0, (0, 2): 6.0}
    dfnd = {(0, 1): 4.0, (0, 2): 0.0, (0, 3): 100.0}
    assert pooled_differences([fast, dfnd]) == {(0, 1): 3.0, (0, 2): 3.0}
    assert pooled_differences([fast]) == fast
    assert pooled_differences([]) == {}
    assert pooled_differences([fast, {}]) == {}


def test_methods_of_one_replicate_do_not_count_as_independent():
    # All six methods move with the seed: six times the students tell no more than three seeds.
    by_seed = {(0, 0): 1.0, (0, 1): 2.0, (0, 2): 3.0}
    assert pooled_differences([by_seed] * 6) == by_seed


def test_the_pooled_mean_is_the_mean_of_the_methods_means():
    random = np.random.default_rng(1)
    methods = [{(0, seed): float(random.normal()) for seed in range(4)} for _ in range(5)]
    pooled = list(pooled_differences(methods).values())
    assert np.mean(pooled) == pytest.approx(np.mean([list(one.values()) for one in methods]))


def test_minus_keeps_what_both_have():
    assert minus({(0, 0): 3.0, (0, 2): 1.0}, {(0, 0): 1.0, (0, 1): 1.0}) == {(0, 0): 2.0}


def test_holm_as_computed_by_hand():
    # Sorted 0.01, 0.03, 0.04 of three: 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before.
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06], abs=1e-12)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def _students(lost, gained, both=3, neither=2):
    """Return labels and two students' classes with these counts of right answers."""
    first = [1] * lost + [0] * gained + [1] * both + [0] * neither
    second = [0] * lost + [1] * gained + [1] * both + [0] * neither
    expected = np.ones(len(first), dtype=np.int16)
    return expected, np.array(first, dtype=np.int16), np.array(second, dtype=np.int16)


def test_mcnemar_as_computed_by_hand():
    # Of 6 images 1 or fewer on one side: (1 + 6) / 2^6, twice.
    assert mcnemar(*_students(1, 5)) == Discordant(lost=1, gained=5, p=pytest.approx(14 / 64))
    assert mcnemar(*_students(5, 1)).p == pytest.approx(14 / 64)


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (0, 6), (3, 4), (12, 30), (200, 310), (9, 9)])
def test_mcnemar_is_scipys_binomial_test_on_the_discordant_images(lost, gained):
    expected = stats.binomtest(gained, lost + gained, 0.5).pvalue
    assert mcnemar(*_students(lost, gained)).p == pytest.approx(expected)


def test_students_that_are_right_on_the_same_images_do_not_differ():
    expected, first, _ = _students(4, 0)
    assert mcnemar(expected, first, first) == Discordant(0, 0, 1.0)
    wrong = np.where(first == expected, first, 7).astype(np.int16)  # wrong in another way
    assert mcnemar(expected, first, wrong) == Discordant(0, 0, 1.0)
