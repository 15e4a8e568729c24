from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scipy import stats

from kdci.config.catalog import DATASETS
from kdci.reporting.costs import Cost
from kdci.reporting.published.ledger import ledger, ledger_section, no_ledger
from kdci.reporting.published.tables import published_cells
from kdci.reporting.text.markdown import report_text

PAIR = ("resnet-34", "resnet-18")
WHERE = {"teacher": PAIR[0], "student": PAIR[1]}


@pytest.fixture
def of(evidence, row):
    """Return evidence of a dataset with rows of resnet-34 to resnet-18."""

    def build(dataset, rows, **more):
        rows = [row(**{**WHERE, "dataset": dataset, **values}) for values in rows]
        return replace(
            evidence,
            spec=DATASETS[dataset],
            rows=rows,
            wanted=[one.cell for one in rows],
            teachers={"resnet-34": {"accuracy": 95.0}},
            students={},
            **more,
        )

    return build


def _found(lines, table, method, variant, pair=PAIR):
    key = (*pair, method, variant)
    return [line for line in lines if (line.cell.table, line.cell.key) == (table, key)]


def test_every_published_cell_of_the_dataset_is_there_run_or_not(of):
    lines = ledger(of("cifar10", [{"accuracy": 90.0}]))
    assert [line.cell for line in lines] == published_cells("cifar10")
    assert {line.state for line in _found(lines, 1, "dfnd", "kdci")} == {"not run"}
    run = [(line.cell.table, line.cell.variant) for line in lines if line.cell.method and line.ours]
    assert run == [(1, "vanilla"), (5, "vanilla")], "a cell may be in several tables"


def test_ours_is_a_mean_over_replicates_with_its_interval_and_delta(of):
    values = (94.0, 95.0, 93.6)
    rows = [{"seed": seed, "accuracy": value} for seed, value in enumerate(values)]
    (line,) = _found(ledger(of("cifar10", rows)), 1, "fast", "vanilla")
    low, high = stats.t.interval(0.95, 2, loc=94.2, scale=stats.sem(values))
    assert (line.cell.accuracy, line.ours.mean, line.ours.n) == (94.05, pytest.approx(94.2), 3)
    assert line.ours.interval == pytest.approx((low, high))
    assert line.delta.mean == pytest.approx(0.15)
    assert line.delta.interval == pytest.approx((low - 94.05, high - 94.05))
    assert (line.budget, line.num_steps, line.part) == (1.0, (400,), "backbone")


def test_one_replicate_has_no_interval(of):
    (line,) = _found(ledger(of("cifar10", [{"accuracy": 90.0}])), 5, "fast", "vanilla")
    assert (line.ours.interval, line.ours.n) == (None, 1)
    assert line.as_json()["interval"] is None
    assert line.as_json()["n"] == 1


def test_budgets_never_share_a_line(of):
    rows = [
        {"seed": 0, "accuracy": 90.0},
        {"seed": 1, "accuracy": 50.0, "budget": 0.1, "num_steps": 40},
    ]
    lines = _found(ledger(of("cifar10", rows)), 1, "fast", "vanilla")
    found = [(line.budget, line.ours.mean, line.ours.n, line.num_steps) for line in lines]
    assert found == [(1.0, 90.0, 1, (400,)), (0.1, 50.0, 1, (40,))]


def test_the_deployed_prediction_is_compared(of):
    rows = [{"variant": "kdci", "accuracy": 91.0, "deploy": "compensated"}]
    (line,) = _found(ledger(of("cifar10", rows)), 1, "fast", "kdci")
    assert (line.part, line.ours.mean) == ("compensated", 91.0)


def test_students_without_test_data_are_neither_run_nor_missing(of):
    (line,) = _found(ledger(of("cifar10", [{"accuracy": None}])), 1, "fast", "vanilla")
    assert (line.state, line.ours, line.delta) == ("not tested", None, None)
    assert line.as_json()["n"] == 0


def test_a_network_from_scratch_has_one_line_and_teachers_are_compared(of):
    lines = [line for line in ledger(of("cifar10", [{}])) if line.cell.method is None]
    cells = [line.cell for line in lines]
    assert [(cell.teacher or cell.student, cell.accuracy) for cell in cells] == [
        ("resnet-34", 95.70), ("vgg-11", 92.25), ("wrn-40-2", 94.87),
        ("resnet-18", 95.20), ("wrn-16-1", 91.12), ("wrn-40-1", 93.94), ("wrn-16-2", 93.95),
    ]  # fmt: skip
    first, second, *_ = lines
    assert (first.state, first.ours.mean, first.delta.mean) == ("run", 95.0, pytest.approx(-0.7))
    assert (second.state, second.ours) == ("not run", None)
    assert {cell.variant for cell in cells} == {"teacher_from_scratch", "student_from_scratch"}


def test_other_datasets_and_pairs_have_nothing_to_be_set_beside(of, evidence):
    assert ledger(evidence) == []
    assert ledger_section([]) == ""
    foreign = ledger(of("cifar10", [{"dataset": "cifar100"}, {"student": "wrn-10-1", "seed": 1}]))
    assert not [line for line in foreign if line.cell.method and line.ours]
    text = report_text(evidence, [])
    assert no_ledger("digits") in text
    assert "## Published tables" not in text


def test_lines_are_plain_json_with_the_promised_names(of):
    promised = {
        "table", "dataset", "teacher", "student", "method", "variant", "published", "ours", "n",
        "interval", "budget", "delta", "footnotes",
    }  # fmt: skip
    lines = ledger(of("cifar100", [{"accuracy": 74.0}, {"accuracy": 75.0, "seed": 1}]))
    values = json.loads(json.dumps([line.as_json() for line in lines], allow_nan=False))
    assert all(promised <= set(one) for one in values)
    one = next(v for v in values if v["table"] == 1 and v["method"] == "fast" and v["ours"])
    assert (one["published"], one["ours"], one["delta"]) == (74.34, 74.5, pytest.approx(0.16))
    assert one["footnotes"] == ["best-epoch", "quoted", "swapped"]


def test_the_section_has_a_line_a_cell_and_says_what_was_not_run(of):
    rows = [
        {"accuracy": 94.0},
        {"accuracy": 94.4, "seed": 1},
        {"variant": "kdci", "accuracy": 90.0, "budget": 0.1, "num_steps": 1000},
    ]
    text = ledger_section(ledger(of("cifar10", rows)))
    assert text.startswith("5 of the 90 cells that are published for cifar10 were run here.")
    # 94.0 and 94.4: standard error 0.2, t(0.975, 1) = 12.7062, half width 2.54
    line = "| resnet-34 to resnet-18 | Fast | vanilla | 94.05 | 94.20 ± 2.54 | 2 | 1 | 400 | "
    assert line + "+0.15 (-2.39 to 2.69) | 2 |" in text
    line = "| resnet-34 to resnet-18 | Fast | KDCI | 94.56 | 90.00 (n = 1) | 1 | 0.1 | 1,000 | "
    assert line + "-4.56 (n = 1) |  |" in text
    assert "| vgg-11 to resnet-18 | CMI | KDCI | 91.28 | not run | - | - | - | - |  |" in text
    assert "| resnet-34 | - | teacher, original data | 95.70 | 95.00 (n = 1) | 1 | 1 | - |" in text
    assert "never averaged" in text
    tables = [line for line in text.splitlines() if line.startswith("### ")]
    assert [line[:11] for line in tables] == [
        "### Table 1", "### Table 4", "### Table 5", "### Footnot",
    ]  # fmt: skip


def test_marks_lead_to_the_footnotes_below(of):
    text = ledger_section(ledger(of("cifar100", [{}])))
    body, notes = text.split("### Footnotes")
    table_1, rest = body.split("### Table 4")
    table_5 = rest.split("### Table 5")[1]
    (swapped,) = [line.split(". ")[0] for line in notes.splitlines() if "swapped in" in line]
    for table in (table_1, table_5):
        lines = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
        marked = [line[1:4] for line in lines if swapped in line[-2].strip().split(", ")]
        assert marked == [
            [" resnet-34 to resnet-18 ", f" {method} ", " vanilla "] for method in ("Fast", "DFND")
        ]
    assert "All lines: 1." in table_1
    assert "95.38" not in notes, "a remark on CIFAR-10 alone"


def test_table_2_has_times_and_memory_with_the_hardware_of_ours(of):
    rows = [{"accuracy": 30.0, "budget": 0.5}, {"accuracy": 31.0, "budget": 0.5, "seed": 1}]
    plain = of("tiny-imagenet", rows)
    first, second = plain.wanted
    costs = {
        first: Cost(10.0, 4000.4, on_gpu=True, hardware="cuda:0 (NVIDIA H100)"),
        second: Cost(12.0, 4100.4, on_gpu=True, hardware="cuda:0 (NVIDIA H100)"),
    }
    text = ledger_section(ledger(replace(plain, costs=costs)))
    ours = "| Fast | vanilla | 101.67 | 11.00 | 5745 | 4100 (GPU) | 0.5 | cuda:0 (NVIDIA H100) |"
    assert ours in text
    assert "| DFND | KDCI | 133.42 | not run | 4198 | not run | - | - |" in text
    assert "Published: one RTX 3090." in text
    assert "| Fast | vanilla | 101.67 | not run |" in ledger_section(ledger(plain))
    on_cpu = {first: Cost(10.0, 9000.0, on_gpu=False, hardware="cpu"), second: costs[second]}
    lines = ledger(replace(plain, costs=on_cpu))
    (line,) = _found(lines, 2, "fast", "vanilla")
    assert line.cost == Cost(11.0, 4100.4, on_gpu=True, hardware="cpu, cuda:0 (NVIDIA H100)")


def test_the_report_holds_the_section(of):
    text = report_text(of("imagenet", [{"teacher": "resnet-50", "accuracy": 55.0}]), [])
    assert "## Published tables" in text
    assert "| resnet-50 to resnet-18 | Fast | vanilla | 53.45 | 55.00 (n = 1) |" in text
    assert no_ledger("imagenet") not in text
