"""The studies' students are the pipeline's, and a search goes on where it ended."""

from __future__ import annotations

import json
import sys

import pytest

from kdci.training.runtime import start
from studies import settings
from studies.workbench import Setting, Shift, Workbench, plain, read_rows


@pytest.fixture
def bench(smoke_project):
    runtime = start(device="cpu", threads=1, precision="fp32")
    return Workbench(
        smoke_project.params, smoke_project.layout, method="fast", pool_seed=0, runtime=runtime
    )


def test_a_student_of_the_workbench_is_that_of_the_stages(smoke_project, bench):
    rows = json.loads((smoke_project.layout.report / "results.json").read_text())
    compensation = smoke_project.params.compensation
    kdci = Setting(
        compensate=True,
        num_prototypes=smoke_project.params.dictionary.num_prototypes,
        options={"fusion": compensation.fusion, "scale": compensation.scale},
    )
    for variant, setting in (("vanilla", Setting()), ("kdci", kdci)):
        (row,) = (r for r in rows if (r["method"], r["variant"]) == ("fast", variant))
        scores = bench.distil(setting, 0)
        assert scores["backbone"] == pytest.approx(row["accuracy_backbone"], abs=1e-3)
        if variant == "kdci":
            expected = row["accuracy_compensated"]
            assert scores["compensated"] == pytest.approx(expected, abs=1e-3)


def test_what_differs_from_the_default_is_written_down():
    assert dict(plain(Setting())) == {}
    assert dict(plain(settings.FACTORS["log, scale 2"])) == {
        "compensate": True,
        "options": {"proportions": "log", "scale": 2.0},
    }
    assert dict(plain(Shift(30, imbalance=10.0))) == {"num_images": 30, "imbalance": 10.0}


def test_a_search_goes_on_where_it_ended(smoke_project, tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    arguments = ["settings", "--root", str(smoke_project.root), "--out", str(out)]
    arguments += ["--pools", "fast", "dfnd", "--settings"]
    monkeypatch.setattr(sys, "argv", [*arguments, "vanilla"])
    settings.main()
    first = out.read_text()
    with out.open("a") as file:
        file.write('{"torn": ')  # a kill in the middle of a line
        file.write("\n")
    monkeypatch.setattr(sys, "argv", [*arguments, "vanilla", "class strata"])
    settings.main()
    rows = read_rows(out)
    assert out.read_text().startswith(first)
    assert [(row["pool"], row["setting"]) for row in rows] == [
        *(("fast", "vanilla"), ("dfnd", "vanilla")),
        *(("fast", "class strata"), ("dfnd", "class strata")),
    ]
    assert "| digits-smoke | dfnd | class strata | 1 |" in capsys.readouterr().out


def test_the_table_pairs_by_replicate():
    rows = [
        {"preset": "p", "pool": "fast", "replicate": r, "setting": s, "backbone": v}
        for r, s, v in (
            (0, "vanilla", 10.0),
            (1, "vanilla", 50.0),
            (0, "kdci", 12.0),
            (1, "kdci", 54.0),
        )
    ]
    line = settings.table(rows).splitlines()[-1]
    assert "| 2 | 33.0 | +3.0 (" in line  # not 3 - 0: the second replicate is another one
    alone = [row for row in rows if (row["replicate"], row["setting"]) != (1, "vanilla")]
    assert "| kdci | 1 | 12.0 | +2.0 (n = 1) |" in settings.table(alone)
