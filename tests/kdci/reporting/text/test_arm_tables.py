from __future__ import annotations

import pytest

from kdci.reporting.arm_comparison import compare_arms, compare_shifts
from kdci.reporting.text.arm_tables import arm_cells, shift_cells
from kdci.reporting.text.table import terminal_table


@pytest.fixture
def rows(row):
    return [
        row(variant, seed, method=method, accuracy_backbone=base + gain * seed)
        for method, base in (("fast", 90.0), ("dfnd", 20.0))
        for variant, gain in (("vanilla", 0.0), ("kdci", 0.5), ("class_balanced", 2.0))
        for seed in (1, 2)
    ]


@pytest.fixture
def shift_rows(row):
    return [
        row(variant, seed, method=method, accuracy_backbone=base + gain * seed)
        for method, base in (("balanced", 90.0), ("long-tail-100", 70.0))
        for variant, gain in (("vanilla", 1.0), ("kdci", 1.5), ("class_balanced", 4.0))
        for seed in (1, 2)
    ]


def test_a_line_a_method_and_arm_and_one_an_arm_over_all(rows):
    head, *lines = arm_cells(compare_arms(rows, "accuracy"))
    assert head == [
        "method", "arm", "backbone", "compensated", "paired difference", "p", "p (Holm)", "n",
    ]  # fmt: skip
    # Gains of 2 and 4: mean 3, half of it 12.7062; t = 3 with one degree of freedom: p = 0.205.
    # The four lines of single methods have this p: 4 x 0.205.
    assert lines[1] == [
        "Fast", "class-balanced", "93.0 ± 12.7", "-", "+3.0 (-9.7 to 15.7)", "0.205", "0.819", "2",
    ]  # fmt: skip
    assert lines[0][:4] == ["Fast", "KDCI", "90.8 ± 3.2", "91.0 ± 0.0"]
    assert lines[-1] == [
        "all methods", "class-balanced", "-", "-", "+3.0 (-9.7 to 15.7)", "0.205", "0.410", "2",
    ]  # fmt: skip


def test_one_replicate_has_neither_interval_nor_p(rows):
    single = [one for one in rows if one.seed == 1]
    _, *lines = arm_cells(compare_arms(single, "accuracy"))
    assert lines[1][4:] == ["+2.0 (n = 1)", "-", "-", "1"]


def test_over_how_many_methods_an_arm_was_run_is_said(rows):
    half_done = [one for one in rows if (one.method, one.variant) != ("dfnd", "class_balanced")]
    lines = arm_cells(compare_arms(half_done, "accuracy"))
    assert [line[0] for line in lines[-2:]] == ["all methods", "1 of 2 methods"]
    (missing,) = [line for line in lines if line[:2] == ["DFND", "class-balanced"]]
    assert missing[2:] == ["not run", "-", "not run", "-", "-", "-"]


def test_a_line_a_shift_with_a_column_an_arm(shift_rows):
    head, balanced, long_tail = shift_cells(compare_shifts(shift_rows, "accuracy"))
    assert head == ["shift", "vanilla", "vanilla - balanced", "KDCI", "class-balanced", "n"]
    assert balanced[:3] == ["balanced", "91.5 ± 6.4", "-"]
    assert long_tail == [
        "long-tail-100", "71.5 ± 6.4", "-20.0 (-20.0 to -20.0)", "+0.8 (-2.4 to 3.9)",
        "+4.5 (-14.6 to 23.6)", "2",
    ]  # fmt: skip


def test_without_a_balanced_pool_the_column_of_costs_is_left_out(shift_rows):
    lines = shift_cells(compare_shifts(shift_rows[6:-1], "accuracy"))
    assert lines[0] == ["shift", "vanilla", "KDCI", "class-balanced", "n"]
    assert lines[1][-2:] == ["+3.0 (n = 1)", "1 to 2"]


def test_the_terminal_shows_arms_and_shifts_in_blocks_of_their_own(rows, shift_rows):
    plain = [row for row in rows if row.variant != "class_balanced"]
    text = terminal_table([*rows, *shift_rows])
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 110
    before, arms = text.split("\n\nArms\n")
    table, shifts = arms.split("\n\nKnown shifts\n")
    assert terminal_table(plain).startswith(before), "the comparison is as it was"
    assert "all methods  class-balanced" in table
    assert "long-tail" not in before + table
    assert "long-tail-100  71.5 +- 6.4" in shifts
    assert "paired Student's t-test" in shifts.replace("\n", " ")


def test_without_further_arms_the_terminal_shows_none(rows):
    text = terminal_table([row for row in rows if row.variant != "class_balanced"])
    assert "Arms" not in text
    assert "Known shifts" not in text


def test_a_grid_of_which_only_a_shift_was_run_has_its_table(shift_rows):
    text = terminal_table(shift_rows)
    assert text.splitlines()[0].startswith("digits: wrn-16-1 -> wrn-10-1")
    assert "Known shifts" in text
    assert "no comparison" not in text
