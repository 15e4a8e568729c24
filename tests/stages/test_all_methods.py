"""Every method and the control through every stage: whole, resumable, away from original data."""

from __future__ import annotations

import shutil
import signal

import numpy as np
import pytest

from kdci.data.datasets import loading as datasets
from kdci.reporting.results import load_rows
from kdci.reporting.text.tables import terminal_table
from kdci.store.artifacts import open_artifact
from kdci.store.layout import all_cells
from kdci.substitution.registry import method_names
from tests.conftest import Call, Project
from tests.stages.test_session import IN_LOOP

pytestmark = pytest.mark.slow

OTHERS = tuple(name for name in method_names() if name not in ("fast", "dfnd"))
"""What the shared experiment leaves out."""
MADE = {"dafl": 48, "cmi": 32, "deepinv": 32, "mosaick": 64 + 32, "noise": 64}
CONTROL = [Call.of(stage, "noise") for stage in ("substitute", "vanilla", "evaluate")]


@pytest.fixture(scope="module")
def everything(smoke_project, tmp_path_factory):
    """The other methods and the control, built. Shared: tests change copies only."""
    root = tmp_path_factory.mktemp("methods") / "project"
    shutil.copytree(smoke_project.root / "artifacts", root / "artifacts")
    shutil.copy(smoke_project.root / "params.yaml", root)
    project = Project(root)
    project.edit(grid__methods=list(OTHERS), grid__controls=["noise"])
    *stages, report = (call for call in project.calls() if call.stage != "teacher")
    return project.build(*stages, *CONTROL, report)


@pytest.fixture
def copy(everything, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(everything.root / "artifacts", root / "artifacts")
    shutil.copy(everything.root / "params.yaml", root)
    return Project(root)


def test_every_student_has_its_row_and_the_control_has_one(everything):
    rows = load_rows(everything.layout.report / "results.json")
    assert [(row.method, row.variant) for row in rows] == [
        (cell.method, cell.variant) for cell in all_cells(everything.params.grid)
    ]
    assert [row.variant for row in rows if row.method == "noise"] == ["vanilla"]
    assert all(row.accuracy is not None for row in rows)
    text = terminal_table(rows)
    for title in ("DAFL", "CMI", "DeepInv", "Mosaick", "Noise"):
        assert f"\n{title} " in text


@pytest.mark.parametrize("method", MADE)
def test_pools_hold_what_was_asked_for(everything, method):
    pool = open_artifact(everything.layout.pool("wrn-10-1", method, 0), kind="pool")
    images, holdout = np.load(pool.file("images.npy")), np.load(pool.file("holdout.npy"))
    block = everything.params.method(method)
    assert len(images) + len(holdout) == block.num_pool_images == MADE[method]
    chosen = pool.facts["num_open_world"]
    assert (chosen > 0) == (method == "mosaick")
    if method == "mosaick":
        held = 64 - chosen
        assert 0 <= held <= len(holdout)  # chosen images come first, those held out are gone


def test_the_pictures_show_all_of_them(everything):
    report = (everything.layout.report / "report.md").read_text()
    for name in ("gallery-wrn-10-1.png", "gallery-time-wrn-10-1.png", "overview.png"):
        assert (everything.layout.report / "figures" / name).stat().st_size > 10_000
        assert f"figures/{name}" in report
    drawn = {file.name for file in (everything.layout.report / "figures").iterdir()}
    assert "predictions-wrn-10-1-wrn-10-1-cmi.png" in drawn
    assert "predictions-wrn-10-1-wrn-10-1-noise.png" not in drawn  # two students to compare


LOOPS = [(stage, method) for method in OTHERS for stage in ("substitute", "kdci")]
CASES = [
    pytest.param(
        stage,
        method,
        settings,
        id=f"{stage}-{method}-{point.replace(' ', '_')}",
        marks=[] if point == "after a checkpoint" else [pytest.mark.slow],
    )
    for stage, method in LOOPS
    for point, settings in IN_LOOP.items()
    if point in ("before the first checkpoint", "after a checkpoint")
]


@pytest.mark.parametrize(("stage", "method", "settings"), CASES)
def test_a_killed_stage_ends_with_the_same_bytes(copy, forks, stage, method, settings):
    this = Call.of(stage, method)
    expected = copy.content(this)
    assert forks.run(copy, this, **settings) == -signal.SIGKILL
    assert copy.run(this) == 0
    assert copy.content(this) == expected
    assert copy.leftovers() == []


@pytest.mark.parametrize("method", [*OTHERS, "noise"])
@pytest.mark.parametrize("stage", ["substitute", "vanilla"])
def test_no_method_opens_original_data(copy, monkeypatch, stage, method):
    def refuse(*args, **kwargs):
        raise AssertionError("original data was opened")

    monkeypatch.setattr(datasets, "load_split", refuse)
    assert copy.run(Call.of(stage, method)) == 0
    with pytest.raises(AssertionError, match="original data"):  # the guard does guard
        copy.run(Call.of("evaluate", method))


def test_a_control_outside_the_grid_is_refused(copy, capsys):
    copy.edit(grid__controls=[])
    assert copy.run(Call.of("substitute", "noise")) == 2
    assert "-noise-0: is no cell of `substitute`" in capsys.readouterr().err
