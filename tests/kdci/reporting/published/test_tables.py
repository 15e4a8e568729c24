"""The tables typed a second time, in the layout they are printed in, against the typed data."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from kdci.config.catalog import BACKBONE_NAMES, DATASETS
from kdci.deconfounding.arms import ARMS
from kdci.reporting.published.tables import HARDWARE, published_cells
from kdci.substitution.registry import method_names
from studies.published_rows import PAIRS

CELLS = [cell for cell in published_cells() if cell.method]
SCRATCH = [cell for cell in published_cells() if not cell.method]

# CIFAR-10, then CIFAR-100 with the same pairs.
TABLE_1 = """
T.backbone | resnet-34 vgg-11 wrn-40-2 wrn-40-2 wrn-40-2
S.backbone | resnet-18 resnet-18 wrn-16-1 wrn-40-1 wrn-16-2
Teacher | 95.70 92.25 94.87 94.87 94.87 | 78.05 71.32 75.83 75.83 75.83
Student | 95.20 95.20 91.12 93.94 93.95 | 77.10 77.10 65.31 72.19 73.56
DAFL | 92.22 81.10 65.71 81.33 81.55 | 74.47 54.16 20.88 42.83 43.70
DAFL+KDCI | 92.62 81.31 74.56 82.91 82.65 | 74.51 58.79 31.75 46.16 48.48
Fast | 94.05 90.53 89.29 92.51 92.45 | 74.34 67.44 54.02 63.91 65.12
Fast+KDCI | 94.56 91.16 89.62 93.09 92.85 | 75.10 68.97 54.69 67.09 68.12
CMI | 94.24 91.24 89.16 91.93 92.00 | 74.64 66.68 55.28 63.44 64.22
CMI+KDCI | 94.43 91.28 89.52 92.84 92.73 | 75.07 69.07 57.19 67.47 67.68
DeepInv | 93.26 90.36 83.04 86.85 89.72 | 61.32 54.13 53.77 61.33 61.34
DeepInv+KDCI | 93.67 91.42 83.47 89.32 91.06 | 74.59 69.67 55.22 62.13 65.90
Mosaick | 95.27 91.69 90.03 93.28 92.94 | 75.91 71.58 59.32 66.61 67.36
Mosaick+KDCI | 95.43 92.36 92.25 94.45 94.20 | 77.06 71.86 62.03 72.19 72.39
DFND | 95.36 91.86 90.26 93.33 93.11 | 74.42 68.97 59.02 69.39 69.85
DFND+KDCI | 95.44 92.54 92.47 94.43 94.43 | 77.09 72.12 66.37 74.20 74.52
"""
TABLE_2 = """
Fast | 28.79 | 101.67s | 5745M
Fast+KDCI | 38.23 (+9.44) | 104.43s (+2.71%) | 5748M (+0.05%)
DeepInv | 20.68 | 255.26s | 3312M
DeepInv+KDCI | 34.84 (+14.16) | 258.51s (+1.27%) | 3316M (+0.12%)
DFND | 42.64 | 129.16s | 4196M
DFND+KDCI | 49.54 (+6.90) | 133.42s (+3.30%) | 4198M (+0.05%)
"""
TABLE_3 = """
Fast | 53.45 | 43.02
Fast+KDCI | 58.24 (+4.79) | 50.12 (+7.10)
DeepInv | 51.36 | 40.25
DeepInv+KDCI | 55.27 (+3.91) | 46.24 (+5.99)
DFND | 42.82 | 16.03
DFND+KDCI | 51.26 (+8.44) | 34.32 (+18.29)
"""
# Columns: Fast, DeepInv, DFND below each of the four settings.
TABLE_4 = """
cifar10 | 94.56 93.67 95.38 | 93.92 91.56 95.28 | 93.35 91.84 94.94 | 93.70 92.76 95.11
cifar100 | 75.10 74.59 77.09 | 74.79 72.72 76.86 | 73.76 72.81 76.14 | 74.60 72.66 76.97
"""
# Columns: w/o, original and other Z of each pair, CIFAR-10 and then CIFAR-100.
TABLE_5 = """
Fast | 94.05 94.56 93.96 | 90.53 91.16 90.73 | 74.42 75.10 74.75 | 67.44 68.97 68.75
DeepInv | 93.26 93.67 93.56 | 90.36 91.42 91.26 | 61.32 74.59 73.04 | 54.13 69.67 68.04
DFND | 95.36 95.44 95.41 | 91.86 92.54 92.34 | 74.34 77.09 76.97 | 68.97 72.12 71.97
"""
CIFARS = ("cifar10", "cifar100")
THREE = ("fast", "deepinv", "dfnd")


def _lines(text):
    """Yield the name and the groups of words of each line."""
    for line in text.strip().splitlines():
        name, *groups = line.split(" | ")
        yield name, [group.split() for group in groups]


def _method(name):
    method, _, kdci = name.lower().partition("+")
    return method, kdci or "vanilla"


def _typed(table):
    return {
        (cell.dataset, cell.teacher, cell.student, cell.method, cell.variant): cell.accuracy
        for cell in CELLS
        if cell.table == table
    }


def _table_1():
    (_, [teachers]), (_, [students]), *lines = _lines(TABLE_1)
    for name, groups in lines:
        for dataset, values in zip(CIFARS, groups, strict=True):
            for teacher, student, value in zip(teachers, students, values, strict=True):
                yield name, (dataset, teacher, student), float(value)


def test_table_1_is_as_printed():
    printed = {
        (*column, *_method(name)): value
        for name, column, value in _table_1()
        if name not in ("Teacher", "Student")
    }
    assert len(printed) == 120, "2 datasets x 5 pairs x 6 methods, each twice"
    assert _typed(1) == printed


def test_networks_trained_from_scratch_are_as_printed():
    """A network stands in the columns of all its pairs, with the same number."""
    printed = {
        (1, dataset, *((teacher, None) if name == "Teacher" else (None, student)), value)
        for name, (dataset, teacher, student), value in _table_1()
        if name in ("Teacher", "Student")
    }
    printed.add((2, "tiny-imagenet", "resnet-34", None, 52.74))
    typed = [
        (cell.table, cell.dataset, cell.teacher, cell.student, cell.accuracy) for cell in SCRATCH
    ]
    assert len(typed) == len(printed) == 15
    assert set(typed) == printed
    for cell in SCRATCH:
        role = "teacher" if cell.teacher else "student"
        assert cell.variant == f"{role}_from_scratch"


def test_table_2_is_as_printed_with_what_kdci_adds():
    cells = {(cell.method, cell.variant): cell for cell in CELLS if cell.table == 2}
    assert len(cells) == 6
    for name, groups in _lines(TABLE_2):
        method, variant = _method(name)
        cell, vanilla = cells[method, variant], cells[method, "vanilla"]
        assert (cell.table, cell.teacher, cell.student) == (2, "resnet-34", "resnet-18")
        printed = [float(group[0].rstrip("sM")) for group in groups]
        values = [cell.accuracy, cell.seconds_per_epoch, cell.memory_mb]
        assert values == printed
        if variant == "kdci":
            gained, *added = [float(re.sub("[()+%]", "", group[1])) for group in groups]
            assert cell.accuracy - vanilla.accuracy == pytest.approx(gained)
            before = (vanilla.seconds_per_epoch, vanilla.memory_mb)
            for after, plain, share in zip(values[1:], before, added, strict=True):
                assert 100 * (after / plain - 1) == pytest.approx(share, abs=0.006)
    assert HARDWARE == "RTX 3090"


def test_table_3_is_as_printed_with_what_kdci_gains():
    typed = _typed(3)
    assert len(typed) == 12
    for name, groups in _lines(TABLE_3):
        method, variant = _method(name)
        for student, words in zip(("resnet-18", "mobilenetv2"), groups, strict=True):
            pair = ("imagenet", "resnet-50", student, method)
            assert typed[*pair, variant] == float(words[0])
            if variant == "kdci":
                gain = float(words[1].strip("(+)"))
                assert typed[*pair, "kdci"] - typed[*pair, "vanilla"] == pytest.approx(gain)


def test_table_4_is_as_printed():
    arms = ("kdci", "kdci_random_lambda", "kdci_random_prototypes", "kdci_without_proportions")
    printed = {
        (dataset, "resnet-34", "resnet-18", method, arm): float(value)
        for dataset, groups in _lines(TABLE_4)
        for arm, values in zip(arms, groups, strict=True)
        for method, value in zip(THREE, values, strict=True)
    }
    assert len(printed) == 24
    assert _typed(4) == printed


def test_table_5_is_as_printed():
    columns = [(dataset, teacher) for dataset in CIFARS for teacher in ("resnet-34", "vgg-11")]
    printed = {
        (*column, "resnet-18", name.lower(), arm): float(value)
        for name, groups in _lines(TABLE_5)
        for column, values in zip(columns, groups, strict=True)
        for arm, value in zip(("vanilla", "kdci", "kdci_other"), values, strict=True)
    }
    assert len(printed) == 36
    assert _typed(5) == printed


def test_cells_are_counted_and_named_by_known_keys():
    counts = Counter((cell.table, cell.dataset) for cell in CELLS)
    assert counts == {
        (1, "cifar10"): 60, (1, "cifar100"): 60, (2, "tiny-imagenet"): 6, (3, "imagenet"): 12,
        (4, "cifar10"): 12, (4, "cifar100"): 12, (5, "cifar10"): 18, (5, "cifar100"): 18,
    }  # fmt: skip
    for cell in CELLS:
        assert cell.dataset in DATASETS
        assert cell.method in method_names()
        assert cell.variant in ARMS
        assert {cell.teacher, cell.student} <= {*BACKBONE_NAMES}
        assert (cell.teacher, cell.student) in PAIRS[cell.dataset]
        assert (cell.seconds_per_epoch is None) == (cell.table != 2)
    assert len({(cell.table, cell.dataset, *cell.key) for cell in CELLS}) == len(CELLS)


def test_a_dataset_that_no_table_has_has_no_cells():
    assert published_cells("digits") == []
    assert {cell.dataset for cell in published_cells("cifar100")} == {"cifar100"}
