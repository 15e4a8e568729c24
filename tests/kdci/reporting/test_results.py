from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from kdci.errors import IntegrityError, UserError
from kdci.reporting.results import Row, grouped, load_rows, measure_of
from tests.project_code import ROOT


def test_rows_survive_the_file_unrounded(tmp_path, row):
    rows = [row(accuracy_backbone=100 / 3), row("kdci", 4, seconds=None)]
    file = tmp_path / "results.json"
    file.write_text(json.dumps([asdict(one) for one in rows]))
    assert load_rows(file) == rows


def test_rows_have_the_promised_names(row):
    promised = {
        "preset", "dataset", "teacher", "student", "method", "variant", "seed", "accuracy",
        "accuracy_backbone", "accuracy_compensated", "teacher_accuracy", "num_steps", "seconds",
        "pool_seed", "agreement_backbone", "agreement_compensated",
    }  # fmt: skip
    assert promised <= set(asdict(row()))


def test_unknown_keys_of_an_evaluation_are_left_out(row):
    values = asdict(row())
    assert Row.from_json({**values, "proportions_backbone": [1.0]}) == row()


def test_results_of_before_shifts_were_measured_are_read(row):
    values = asdict(row())
    old = {name: value for name, value in values.items() if "_bias_" not in name}
    assert Row.from_json(old) == row()
    with pytest.raises(KeyError):
        Row.from_json({name: value for name, value in values.items() if name != "deploy"})
    known = Row.from_json({**old, "marginal_bias_compensated": 0.25})
    assert known.value("marginal_bias", "compensated") == 0.25


def test_only_an_arm_with_a_module_can_deploy_it(row):
    assert row("vanilla", deploy="compensated").deployed == "backbone"
    assert row("class_balanced", deploy="compensated").deployed == "backbone"
    assert row("kdci", deploy="compensated").deployed == "compensated"
    assert row("kdci_stratified", deploy="backbone").deployed == "backbone"


def test_no_results_yet_is_the_users_business(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        load_rows(tmp_path / "results.json")


@pytest.mark.parametrize("text", ["[{", "[{}]", "[3]", "3", '{"a": 1}'])
def test_damaged_results_are_refused(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(IntegrityError):
        load_rows(file)


def test_agreement_is_the_measure_only_without_any_accuracy(row):
    assert measure_of([]) == "accuracy"
    untested = row(accuracy=None, accuracy_backbone=None)
    assert measure_of([untested, row()]) == "accuracy"
    assert measure_of([untested]) == "agreement"


def test_the_table_loads_neither_torch_nor_matplotlib_and_the_report_no_torch():
    code = """
import sys
import kdci.reporting.text.tables
assert not {"torch", "matplotlib", "scipy", "numpy"} & set(sys.modules), "table"
import kdci.reporting.gather, kdci.reporting.text.markdown, stages.report
assert not {"torch", "scipy.stats"} & set(sys.modules), "report"
"""
    root = ROOT
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_rows_name_their_budget_and_those_of_before_have_the_whole(row):
    values = asdict(row(budget=0.25))
    assert values["budget"] == 0.25
    assert Row.from_json(values).group == ("wrn-16-1", "wrn-10-1", 0.25)
    del values["budget"]
    assert Row.from_json(values).budget == 1.0


def test_rows_are_grouped_by_pair_and_budget_in_their_order(row):
    rows = [row(budget=0.5), row(student="wrn-40-1"), row("kdci", budget=0.5), row()]
    found = grouped(rows, lambda one: one.group)
    assert [(student, budget) for _, student, budget in found] == [
        ("wrn-10-1", 0.5), ("wrn-40-1", 1.0), ("wrn-10-1", 1.0),
    ]  # fmt: skip
    assert [one.variant for one in found["wrn-16-1", "wrn-10-1", 0.5]] == ["vanilla", "kdci"]
