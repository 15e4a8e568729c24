"""docs/evidence.md says what the kept results say."""

from __future__ import annotations

import json
import re
import sys

import pytest

from kdci.store.layout import all_cells
from studies import evidence, keep

PAGE = evidence.PAGE.read_text(encoding="utf-8") if evidence.PAGE.exists() else ""


def test_every_table_of_the_page_is_that_of_the_results():
    assert evidence.filled(PAGE) == PAGE
    named = set(re.findall(r"<!-- ([^>]+?) -->", PAGE)) - {"end"}
    assert named <= set(evidence.TABLES) and len(named) > 10


def test_a_changed_number_does_not_stay(tmp_path):
    changed = re.sub(r"\| Fast \| (\d)", r"| Fast | 1\1", PAGE, count=1)
    assert changed != PAGE and evidence.filled(changed) == PAGE


@pytest.mark.parametrize("file", sorted(keep.RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_kept_results_name_where_they_come_from(file):
    kept = json.loads(file.read_text())
    assert kept["experiment"] == file.stem and kept["command"].startswith("kdci preset ")
    assert kept["revisions"] and kept["hardware"] and kept["runtime"] and kept["rows"]
    assert not any("+dirty" in revision for revision in kept["revisions"])
    assert kept["not_run"] == []


def test_keeping_an_experiment(smoke_project, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(keep, "FIGURES", tmp_path / "figures")
    arguments = ["keep", "--root", str(smoke_project.root), "--figures", "overview*.png"]
    monkeypatch.setattr(sys, "argv", arguments)
    keep.main()
    kept = json.loads((tmp_path / "results/digits-smoke.json").read_text())
    assert len(kept["rows"]) == len(list(all_cells(smoke_project.params.grid)))
    results = json.loads((smoke_project.layout.report / "results.json").read_text())
    for mine, theirs in zip(kept["rows"], results, strict=True):
        assert mine["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-4)
    assert {pool["method"] for pool in kept["pools"]} == {"fast", "dfnd"}
    assert {test["variant"] for test in kept["mcnemar"]} == {"kdci"}
    assert [file.name for file in (tmp_path / "figures").iterdir()] == ["digits-smoke-overview.png"]
