from __future__ import annotations

from dataclasses import replace

from kdci.config.params import Grid
from kdci.reporting.figures.drawing import DrawnFigure
from kdci.reporting.text.markdown import report_text
from kdci.store.layout import all_cells


def test_report_opens_with_what_was_found_for_every_method(evidence):
    text = report_text(evidence, [])
    # differences 1 and 3: mean 2, t(0.975, 1) = 12.7062, half width 12.7062 * sqrt(2) / sqrt(2)
    first = (
        "- **Fast: KDCI +2.0 points (95 % interval -10.7 to 14.7, n = 2): no difference shown.**"
    )
    assert text.index(first) < text.index("- **DFND: no comparison (vanilla and KDCI not run).**")
    assert text.index("DFND: no comparison") < text.index("## Results")


def test_report_states_its_setting(evidence):
    text = report_text(evidence, [])
    for statement in (
        "Teacher wrn-16-1: test accuracy 98.5 %",
        "400 steps x batch 64 = 25,600 images",
        "Device: cpu (x86_64)",
        "Threads: 2",
        "Precision: fp32",
        "Code revision: abc123",
        "deployed prediction, `backbone`",
        "dvc repro",
    ):
        assert statement in text


def test_report_names_what_was_not_run(evidence):
    text = report_text(evidence, [])
    assert "4 of the grid's 8 students" in text
    assert text.count("- not run:") == 4
    assert "- not run: wrn-16-1/wrn-10-1/dfnd/kdci/pool0-seed1" in text
    complete = replace(evidence, wanted=evidence.wanted[:4])
    assert "not run" not in report_text(complete, [])


def test_report_states_the_shift_of_the_pools_and_the_dictionary(evidence):
    text = report_text(evidence, [])
    # |0.75 - 0.1| + |0.25 - 0.1| + 8 * 0.1 = 1.6, half of it 0.8
    assert "| Fast, pool 0 | wrn-16-1 | 40 | 0.80 | 2, 3, 4, 5, 6, 7, 8, 9 | 65.4 % |" in text
    assert "| Fast, pool 0 | wrn-16-1 | logits | 3 of 4 | 10 | 40 | 20.0 to 50.0 % |" in text


def test_report_never_calls_agreement_accuracy(evidence):
    rows = [
        replace(row, accuracy=None, accuracy_backbone=None, accuracy_compensated=None)
        for row in evidence.rows
    ]
    untested = replace(evidence, rows=rows, teachers={"wrn-16-1": {"accuracy": None}})
    text = report_text(untested, [])
    assert "No test data: agreement with the teacher on held-out substitutes" in text
    assert "accuracy on the test split" not in text
    assert "test accuracy not known" in text


def test_figures_are_embedded_with_their_captions(evidence):
    figures = [
        DrawnFigure("overview.png", "Overview", "All at a glance.", b""),
        DrawnFigure("curves-a-b.png", "Learning curves", "Over steps.", b""),
    ]
    text = report_text(evidence, figures)
    assert "![Overview](figures/overview.png)" in text
    curves = text.index("![Learning curves](figures/curves-a-b.png)")
    assert text.index("## Learning curves") < curves < text.index("## Every student")
    assert "## Predictions" not in text


def test_a_grid_of_which_nothing_was_run_still_has_a_report(evidence):
    nothing = replace(
        evidence, rows=[], teachers={}, pools=[], dictionaries=[], students={}, points=[],
        examples=[],
    )  # fmt: skip
    text = report_text(nothing, [])
    assert "0 of the grid's 8 students" in text
    assert "Code revision: unknown" in text
    assert "## Every student" not in text


def test_a_budget_stands_with_every_number(evidence):
    assert "udget of" in report_text(evidence, [])
    assert ", budget" not in report_text(evidence, [])
    tenth = replace(evidence, rows=[replace(row, budget=0.1) for row in evidence.rows])
    text = report_text(tenth, [])
    assert "All students have a budget of 0.1." in text
    assert text.count("wrn-16-1 to wrn-10-1, budget 0.1:") == 2, "results, every student"
    assert "= 25,600 images, budget 0.1" in text
    assert "factor on the steps" in text


def test_several_budgets_have_tables_of_their_own(evidence):
    rows = [replace(row, budget=0.1 if row.seed else 1.0) for row in evidence.rows]
    text = report_text(replace(evidence, rows=rows), [])
    assert "- wrn-16-1 to wrn-10-1, **Fast: KDCI +1.0 points (n = 1)" in text
    assert "- wrn-16-1 to wrn-10-1, budget 0.1, **Fast: KDCI +3.0 points (n = 1)" in text
    assert "| Fast | 90.0 (n = 1) | 91.0 (n = 1) |" in text
    assert "| Fast | 92.0 (n = 1) | 95.0 (n = 1) |" in text
    assert "93.0 ±" not in text


def test_pairs_that_are_no_product_have_a_table_each(evidence, row):
    grid = Grid(
        teachers=["wrn-16-1", "vgg-11"],
        pairs=[
            {"teacher": "wrn-16-1", "student": "wrn-10-1"},
            {"teacher": "vgg-11", "student": "resnet-18"},
        ],
        methods=["fast"],
        seeds=[0],
    )
    wanted = list(all_cells(grid))
    rows = [row(**{**cell.asdict(), "accuracy_backbone": 80.0}) for cell in wanted]
    text = report_text(replace(evidence, wanted=wanted, rows=rows, students={}), [])
    assert "4 of the grid's 4 students" in text
    titles = [line for line in text.splitlines() if line.endswith(":") and " to " in line]
    assert titles == ["wrn-16-1 to wrn-10-1:", "vgg-11 to resnet-18:"] * 2
    assert "wrn-16-1 to resnet-18" not in text


def test_the_fusion_of_kdci_is_stated_where_it_is_known(evidence):
    assert "Fusion" not in report_text(evidence, [])
    first, *_ = evidence.students
    card = {**evidence.students[first], "params": {"compensation": {"fusion": "residual"}}}
    known = replace(evidence, students={**evidence.students, first: card})
    assert "- Fusion of KDCI's students: residual" in report_text(known, [])
