from __future__ import annotations

import re

import pytest

from kdci.reporting.published.footnotes import FOOTNOTES, footnotes_of
from kdci.reporting.published.tables import published_cells

CELLS = [cell for cell in published_cells() if cell.method]
SCRATCH = [cell for cell in published_cells() if not cell.method]


def _on(key, **values):
    """Return the cells that have a footnote, and some values."""
    return [
        cell
        for cell in CELLS
        if key in footnotes_of(cell)
        and all(getattr(cell, name) == value for name, value in values.items())
    ]


def _accuracies(key, **values):
    return sorted(cell.accuracy for cell in _on(key, **values))


def test_every_footnote_is_on_some_cell_and_has_a_name_of_its_own():
    used = {key for cell in CELLS for key in footnotes_of(cell)}
    assert used == set(FOOTNOTES)


@pytest.mark.parametrize(
    ("key", "accuracies"),
    [
        # Fast and DFND, swapped between Tables 1 and 5
        ("swapped", [74.34, 74.34, 74.42, 74.42]),
        ("dfnd-95-38", [95.38, 95.44, 95.44]),
        ("headline", [69.67, 69.67]),
        ("quoted-imagenet", [43.02, 53.45]),
        ("cmi-run-again", [55.28, 63.44, 64.22, 66.68, 74.64, 89.16, 91.24, 91.93, 92.00, 94.24]),
        ("mosaick-imagenet-pool", [59.32, 66.61, 67.36, 75.91]),
        ("mosaick-cifar10-pool", [71.58]),
        ("mosaick-pool-unknown", [90.03, 91.69, 92.94, 93.28, 95.27]),
        ("dfnd-run-again", [74.34, 74.42, 95.36, 95.36]),
        ("two-dafl-rows", [20.88, 42.83, 43.70, 54.16, 74.47]),
        ("stem", [20.68, 28.79, 34.84, 38.23, 42.64, 49.54]),
    ],
)
def test_a_footnote_is_on_the_cells_it_is_about(key, accuracies):
    assert _accuracies(key) == accuracies


def test_swapped_names_the_two_numbers_of_each_table():
    numbers = {(cell.table, cell.method): cell.accuracy for cell in _on("swapped")}
    assert numbers[1, "fast"] == numbers[5, "dfnd"] == 74.34
    assert numbers[1, "dfnd"] == numbers[5, "fast"] == 74.42


def test_the_headline_is_the_difference_of_its_cells():
    vanilla = next(
        cell.accuracy
        for cell in CELLS
        if (cell.table, cell.dataset) == (1, "cifar100")
        and cell.key == ("vgg-11", "resnet-18", "deepinv", "vanilla")
    )
    assert 69.67 - vanilla == pytest.approx(15.54)


def test_quoted_lines_are_vanilla_ones_of_table_1_and_networks_from_scratch():
    assert len(_on("quoted")) == 2 * 3 * 5
    assert {(cell.table, cell.variant) for cell in _on("quoted")} == {(1, "vanilla")}
    assert {footnotes_of(cell) for cell in SCRATCH if cell.table == 1} == {("best-epoch", "quoted")}
    assert [footnotes_of(cell) for cell in SCRATCH if cell.table == 2] == [("best-epoch", "stem")]


def test_what_holds_for_a_whole_table_is_on_all_its_cells():
    assert {cell.table for cell in _on("pair")} == {4}
    assert len(_on("pair")) == 24
    assert len(_on("best-epoch")) == len(CELLS)


def test_table_4_has_the_pair_that_its_footnote_says():
    """All six original numbers but one stand in Table 1, in the first column."""
    first = {
        (cell.dataset, cell.method): cell.accuracy
        for cell in CELLS
        if cell.table == 1 and cell.teacher == "resnet-34" and cell.variant == "kdci"
    }
    originals = [cell for cell in CELLS if cell.table == 4 and cell.variant == "kdci"]
    different = [cell for cell in originals if first[cell.dataset, cell.method] != cell.accuracy]
    assert [(cell.dataset, cell.method) for cell in different] == [("cifar10", "dfnd")]


def test_footnotes_are_sentences():
    for key, note in FOOTNOTES.items():
        assert re.match(r"[A-Z].*\.$", note.text), key
