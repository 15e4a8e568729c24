from __future__ import annotations

from dataclasses import replace

import pytest

from kdci.reporting.comparison import compare, compare_arms, compare_shifts
from kdci.reporting.text.tables import (
    aligned,
    arm_cells,
    comparison_cells,
    markdown,
    rows_table,
    shift_cells,
    terminal_table,
)

LINES = [["name", "one", "two"], ["a", "1", "22"], ["long name", "333", "4"]]


def test_columns_are_as_wide_as_their_widest_cell():
    assert aligned(LINES) == ["name       one  two", "a          1    22", "long name  333  4"]


def test_columns_without_room_go_on_below_beside_the_first():
    assert aligned(LINES, width=14) == [
        "name       one", "a          1", "long name  333",
        "",
        "name       two", "a          22", "long name  4",
    ]  # fmt: skip
    assert aligned(LINES, width=1) == aligned(LINES, width=14), "one column at least"


def test_markdown_has_numbers_at_the_right():
    assert markdown(LINES).splitlines() == [
        "| name | one | two |",
        "| --- | ---: | ---: |",
        "| a | 1 | 22 |",
        "| long name | 333 | 4 |",
    ]
    assert "| --- | --- | ---: |" in markdown(LINES, num_names=2)
    assert "| --- | --- | --- |" in markdown(LINES, num_names=None)


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


def _rows(row):
    return [
        row("vanilla", 0),
        row("vanilla", 1, accuracy_backbone=92.0),
        row("kdci", 0, accuracy_backbone=91.0),
        row("kdci", 1, accuracy_backbone=95.0, seconds=12.0),
        row("vanilla", 0, method="dfnd", accuracy_backbone=30.0),
    ]


def test_terminal_table_is_aligned_ascii_with_a_line_a_method(row):
    text = terminal_table(_rows(row))
    assert text.isascii()
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("method"))
    fast = next(line for line in lines if line.startswith("Fast "))
    dfnd = next(line for line in lines if line.startswith("DFND "))
    assert max(map(len, lines)) <= 110
    for column, in_fast, in_dfnd in (
        ("vanilla", "91.0 +- 12.7", "30.0 (n = 1)"),
        ("KDCI backbone", "93.0 +- 25.4", "not run"),
        ("KDCI compensated", "91.0 +- 0.0", "not run"),
        ("paired difference", "+2.0 (-10.7 to 14.7)", "not run"),
        ("seconds", "10.0 / 11.0", "10.0 / -"),
    ):
        at = head.index(column)
        assert fast[at:].startswith(in_fast)
        assert dfnd[at:].startswith(in_dfnd)
    assert "teacher 98.5 %" in lines[0]
    assert any(line.startswith("DFND: no comparison") for line in lines)


def test_a_control_has_nothing_to_say_about_kdci(row):
    text = terminal_table([*_rows(row), row("vanilla", 0, method="noise", accuracy_backbone=11.0)])
    (line,) = [line for line in text.splitlines() if line.startswith("Noise ")]
    assert line.split() == ["Noise", "11.0", "(n", "=", "1)", "-", "-", "-", "-", "10.0"]
    assert "Noise, a control: 11.0 (n = 1), what a method has to beat." in text
    assert "not run" not in line


def test_terminal_table_has_a_block_a_pair(row):
    text = terminal_table([row("vanilla"), row("vanilla", student="wrn-40-1")])
    assert "wrn-16-1 -> wrn-10-1" in text
    assert "wrn-16-1 -> wrn-40-1" in text


def test_terminal_table_says_what_its_numbers_are(row):
    assert "accuracy on the test split" in terminal_table([row()])
    untested = {"accuracy": None, "accuracy_backbone": None, "accuracy_compensated": None}
    text = terminal_table([row("vanilla", teacher_accuracy=None, **untested)])
    assert "agreement with the teacher on held-out substitutes" in text
    assert "80.0 (n = 1)" in text
    assert "98.5" not in text


def test_terminal_table_of_nothing():
    assert "nothing of the grid" in terminal_table([])


def test_markdown_tables_are_rectangular(row):
    rows = _rows(row)
    for text in (markdown(comparison_cells(compare(rows))), rows_table(rows)):
        lines = text.splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")
    assert "91.0 ± 12.7" in markdown(comparison_cells(compare(rows)))
    assert "| Fast | KDCI | 0 | 1 | 95.0 | 91.0 | 400 | 12.0 |" in rows_table(rows)
    assert "| DFND | vanilla | 0 | 0 | 30.0 | - | 400 | 10.0 |" in rows_table(rows)


def test_a_budget_is_in_the_title_of_its_own_block(row):
    whole = terminal_table(_rows(row))
    assert "udget" not in whole
    tenth = [replace(one, budget=0.1, accuracy_backbone=10.0) for one in _rows(row)]
    text = terminal_table([*_rows(row), *tenth])
    titles = [line for line in text.splitlines() if line.startswith("digits:")]
    title = "digits: wrn-16-1 -> wrn-10-1 on digits, teacher 98.5 %"
    assert titles == [title, f"{title}, budget 0.1"]
    first, second = text.split(titles[1])
    assert "91.0 +- 12.7" in first
    assert "10.0 +- 0.0" in second
    assert "never averaged" in second
    assert text.isascii()
