from __future__ import annotations

import pytest

from kdci.reporting.comparison import compare
from kdci.reporting.statistics import Estimate
from kdci.reporting.text.wording import (
    difference_text,
    headline,
    interval_text,
    is_shift,
    mean_text,
    number,
    p_text,
    signed,
    verdict,
)


def test_whatever_is_no_method_is_a_known_shift():
    """Rows do not say what their `method` is."""
    assert is_shift("long-tail-100")
    assert not is_shift("fast")
    assert not is_shift("noise")


@pytest.mark.parametrize(
    ("value", "expected"), [(98.14, "98.1"), (-0.04, "0.0"), (-0.06, "-0.1"), (None, "-")]
)
def test_number(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.3, "+0.3"), (-0.5, "-0.5"), (0.04, "0.0")])
def test_signed(value, expected):
    assert signed(value) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0344, "0.034"), (0.0009, "<0.001"), (0.001, "0.001"), (1.0, "1.000"), (None, "-")],
)
def test_p_text(p, expected):
    assert p_text(p) == expected


def test_estimates_with_and_without_interval():
    assert mean_text(Estimate(98.14, (97.74, 98.54), 3)) == "98.1 ± 0.4"
    assert mean_text(Estimate(98.14, None, 1)) == "98.1 (n = 1)"
    assert mean_text(None) == "not run"
    assert difference_text(Estimate(0.3, (-0.5, 1.1), 3)) == "+0.3 (-0.5 to 1.1)"
    assert difference_text(Estimate(0.3, None, 1)) == "+0.3 (n = 1)"


def test_rounding_never_hides_on_which_side_of_zero_a_bound_lies():
    assert interval_text(Estimate(0.5, (0.02, 0.98), 3)) == "0.02 to 1.0"
    assert interval_text(Estimate(0.5, (-0.02, 1.02), 3)) == "-0.02 to 1.0"


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-0.5, 1.1), "no difference shown"),
        ((0.0, 1.1), "no difference shown"),
        ((-1.1, 0.0), "no difference shown"),
        ((0.1, 1.1), "KDCI is better here"),
        ((-1.1, -0.1), "KDCI is worse here"),
        (None, "one replicate, so nothing is shown"),
        ((0.3, 0.3), "the same in all 3 replicates, so no interval can be given"),
    ],
)
def test_verdict_claims_nothing_beyond_the_interval(interval, expected):
    assert verdict(Estimate(0.3, interval, 1 if interval is None else 3)) == expected


def test_headline_says_how_sure_it_is(row):
    kdci = [(0, 90.3), (1, 90.9), (2, 89.7)]
    rows = [row("vanilla", seed) for seed in range(3)]
    rows += [row("kdci", seed, accuracy_backbone=value) for seed, value in kdci]
    (one,) = compare(rows)
    # differences 0.3, 0.9, -0.3: mean 0.3, half width 4.302653 * 0.6 / sqrt(3) = 1.4905
    expected = "Fast: KDCI +0.3 points (95 % interval -1.2 to 1.8, n = 3): no difference shown."
    assert headline(one) == expected


def test_headline_names_what_is_missing(row):
    (one,) = compare([row("vanilla")])
    assert headline(one) == "Fast: no comparison (KDCI not run)."
    (one,) = compare([row("vanilla", 0), row("kdci", 1)])
    assert headline(one) == "Fast: no comparison (no replicate has both variants)."
    (one,) = compare([row("vanilla"), row("kdci", accuracy_backbone=91.0)])
    assert headline(one) == "Fast: KDCI +1.0 points (n = 1): one replicate, so nothing is shown."


def test_headline_calls_agreement_by_its_name(row):
    untested = {"accuracy": None, "accuracy_backbone": None, "accuracy_compensated": None}
    (one,) = compare([row("vanilla", **untested), row("kdci", **untested)])
    assert "points of agreement" in headline(one)
