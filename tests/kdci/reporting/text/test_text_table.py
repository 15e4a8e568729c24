from __future__ import annotations

from kdci.reporting.text.text_table import aligned, markdown

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
