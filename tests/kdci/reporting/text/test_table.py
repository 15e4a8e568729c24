from __future__ import annotations

from dataclasses import replace

from kdci.reporting.comparison import compare
from kdci.reporting.text.table import markdown_table, rows_table, terminal_table


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
    for text in (markdown_table(compare(rows)), rows_table(rows)):
        lines = text.splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|-: ")
    assert "91.0 ± 12.7" in markdown_table(compare(rows))
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
