"""`kdci explain` says why, what follows and for how long; DVC then does just that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdci.errors import UserError
from pipelines.cli import run
from pipelines.explaining.differences import Difference
from pipelines.explaining.explain import Explained, Explanation, explain
from pipelines.explaining.forecast import Fate
from pipelines.explaining.tasks import tasks_of
from pipelines.explaining.text import duration, explanation_lines, together
from pipelines.graph.current import current_graph
from pipelines.graph.dag import read_dag
from tests.project_code import ROOT


def fates(explanation: Explanation, *wanted: Fate) -> set[str]:
    found = (*explanation.stages, *explanation.following)
    return {one.name for one in found if one.fate in wanted}


def by_name(explanation: Explanation) -> dict[str, Explained]:
    return {one.name: one for one in (*explanation.stages, *explanation.following)}


# -- against what DVC does ------------------------------------------------------------------------


def check_against_repro(tiny) -> tuple[set[str], set[str]]:
    """Compare an explanation with the `dvc repro` after it; return what ran and was restored."""
    before = {name: hash_of(tiny, name) for name in read_dag(tiny.root, status=False).stages}
    explanation = explain(tiny.layout, tiny.tasks)
    assert {name: hash_of(tiny, name) for name in before} == before  # it changed nothing
    ran, restored = tiny.repro()
    assert fates(explanation, Fate.runs) <= ran
    assert fates(explanation, Fate.restored) <= restored
    assert ran <= fates(explanation, Fate.runs, Fate.may_run)
    assert restored <= fates(explanation, Fate.restored, Fate.may_run)
    assert explain(tiny.layout, tiny.tasks).stages == ()
    return ran, restored


def hash_of(tiny, name: str) -> str:
    return str(
        sorted(file.read_bytes() for file in tiny.root.glob("artifacts/**/*") if file.is_file())
    )


@pytest.mark.slow
def test_a_methods_param_reaches_what_is_made_with_it(tiny) -> None:
    tiny.edit("methods.fast.num_steps", 4)
    ran, restored = check_against_repro(tiny)
    assert (ran, restored) == (
        {"substitute@fast", "distill@fast-0", "distill@fast-1", "report"},
        set(),
    )

    # Back again, DVC has all but what depends on whole folders, and is known to have.
    tiny.edit("methods.fast.num_steps", 3)
    explanation = explain(tiny.layout, tiny.tasks)
    assert fates(explanation, Fate.restored) == ran - {"report"}
    assert fates(explanation, Fate.may_run) == {"report"}
    assert explanation.cost.num_stages == 1
    assert ran - {"report"} <= check_against_repro(tiny)[1]


@pytest.mark.slow
def test_what_comes_out_the_same_ends_there(tiny) -> None:
    tiny.edit("methods.fast.note", "of no consequence")
    explanation = explain(tiny.layout, tiny.tasks)
    assert fates(explanation, Fate.may_run) == {"distill@fast-0", "distill@fast-1", "report"}
    assert check_against_repro(tiny) == ({"substitute@fast"}, set())


def test_a_deleted_output_is_given_back_and_nothing_follows(tiny) -> None:
    shutil.rmtree(tiny.root / "artifacts/tiny/pools/fast")
    explanation = explain(tiny.layout, tiny.tasks, ["substitute", "distill@fast-0"])
    assert fates(explanation, Fate.restored) == {"substitute@fast"}
    assert by_name(explanation)["substitute@fast"].differences[0].kind == "output"
    assert by_name(explanation)["distill@fast-0"].fate is Fate.up_to_date
    assert by_name(explanation)["distill@fast-0"].follows_from == ("substitute@fast",)
    assert explanation.following == ()
    assert check_against_repro(tiny) == (set(), {"substitute@fast"})


@pytest.mark.slow
def test_a_seed_adds_its_students_alone(tiny) -> None:
    tiny.edit("grid.seeds", [0, 1, 2])
    ran, _ = check_against_repro(tiny)
    assert ran == {"distill@fast-2", "distill@dfnd-2", "report"}


def test_the_order_of_methods_is_no_reason_for_a_student(tiny) -> None:
    tiny.edit("grid.methods", ["dfnd", "fast"])
    assert fates(explain(tiny.layout, tiny.tasks), Fate.runs) == {"report"}
    assert check_against_repro(tiny) == ({"report"}, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda tiny: tiny.edit("teacher.num_epochs", 5),
        lambda tiny: tiny.edit("recipes.dfnd.num_epochs", 2),
        lambda tiny: tiny.edit("grid.methods", ["fast"]),
        lambda tiny: tiny.append("stages/distill.py", "one = 1\n"),
        lambda tiny: tiny.append("stages/teacher.py", "# a comment\n"),
        lambda tiny: shutil.rmtree(tiny.root / ".dvc/cache"),
        lambda tiny: (tiny.root / "dvc.lock").unlink(),
        lambda tiny: (tiny.root / "artifacts/tiny/students/fast-0/value.txt").write_text("mine"),
        lambda tiny: shutil.rmtree(tiny.root / "artifacts"),
        lambda tiny: (
            shutil.rmtree(tiny.root / "artifacts/tiny/pools"),
            shutil.rmtree(tiny.root / ".dvc/cache"),
            tiny.edit("recipes.fast.num_epochs", 3),
        ),
    ],
    ids=[
        "the teacher",
        "a recipe",
        "a method less",
        "code of students",
        "a comment",
        "no cache",
        "no lock",
        "an output by hand",
        "no outputs",
        "no pools and no cache",
    ],
)
def test_every_kind_of_change(tiny, change: Callable) -> None:
    change(tiny)
    check_against_repro(tiny)


# -- reasons --------------------------------------------------------------------------------------


def test_params_have_both_values(tiny) -> None:
    tiny.edit("methods.fast.num_steps", 4)
    tiny.edit("methods.fast.extra", {"depth": None})
    tiny.edit("grid.seeds", [0, 1, 2])
    found = by_name(explain(tiny.layout, tiny.tasks))
    assert found["substitute@fast"].differences == (
        Difference("param", "methods.fast.num_steps", "modified", "3", "4"),
        Difference("param", "methods.fast.extra.depth", "modified", "(absent)", "null"),
    )
    assert found["report"].differences == (
        Difference("param", "grid.seeds", "modified", "[0, 1]", "[0, 1, 2]"),
    )
    assert found["distill@fast-2"].differences == (Difference("new"),)


def test_code_files_artifacts_outputs_and_commands_are_told_apart(tiny) -> None:
    tiny.append("stages/distill.py", "one = 1\n")
    tiny.append("stages/report.py", "one = 1\n")
    tiny.edit("recipes.dfnd.num_epochs", 2)
    tiny.dvc("repro", "--single-item", "distill@dfnd-0")
    (tiny.root / "artifacts/tiny/students/fast-0/value.txt").write_text("mine")
    (tiny.root / "dvc.yaml").write_text(
        (tiny.root / "dvc.yaml").read_text().replace("stages.teacher\n", "stages.teacher --x 1\n")
    )
    found = by_name(explain(tiny.layout, tiny.tasks, ["teacher", "distill@fast-0", "report"]))
    (command,) = found["teacher"].differences
    assert (command.kind, command.old) == ("command", "python -m stages.teacher")
    assert command.new == "python -m stages.teacher --x 1"
    code, output = found["distill@fast-0"].differences
    assert (code.kind, code.subject, output.kind) == ("code", "distill", "output")
    assert output.subject == "artifacts/tiny/students/fast-0"
    (file,) = found["report"].differences  # that its students are about to be made anew is none
    assert (file.kind, file.subject) == ("file", "stages/report.py")
    for one in (code, output, file):
        assert len(one.old) == len(one.new) == 7
        assert one.old != one.new


def test_an_artifact_names_the_stage_that_made_it(tiny) -> None:
    tiny.edit("methods.dfnd.num_selected", 6)
    tiny.dvc("repro", "--single-item", "substitute@dfnd")
    found = by_name(explain(tiny.layout, tiny.tasks))
    assert set(found) == {"distill@dfnd-0", "distill@dfnd-1", "report"}
    (one,) = found["distill@dfnd-0"].differences
    assert (one.kind, one.made_by) == ("artifact", ("substitute@dfnd",))


def test_the_old_name_is_looked_for(tiny) -> None:
    with pytest.raises(UserError, match="did you mean 'distill'"):
        explain(tiny.layout, tiny.tasks, ["teacher", "distil"])


# -- costs and words ------------------------------------------------------------------------------


def test_costs_add_up(tiny) -> None:
    """The tiny stages claim 2 s, and half a second a step."""
    tiny.edit("methods.fast.num_steps", 4)
    explanation = explain(tiny.layout, tiny.tasks, limit=2)
    found = by_name(explanation)
    pool = found["substitute@fast"].expected_time
    assert pool is not None
    assert (pool.seconds, pool.num_runs, pool.kin) == (2 + 8 / 2, 1, "this stage")
    assert (pool.steps, pool.steps_before) == (8, (6,))
    assert found["report"].expected_time is None
    cost = explanation.cost
    assert (cost.num_stages, cost.seconds, cost.unknown) == (4, 6 + 8 + 8, ("report",))
    assert (cost.limit, cost.seconds_at_limit) == (2, 6 + 8)


def test_words(tiny) -> None:
    assert list(explanation_lines(explain(tiny.layout, tiny.tasks))) == [
        "all 8 stages are up to date"
    ]
    tiny.edit("methods.fast.num_steps", 4)
    assert list(explanation_lines(explain(tiny.layout, tiny.tasks, limit=2))) == [
        "substitute@fast: will run",
        "  param  methods.fast.num_steps  3 -> 4",
        "  takes  about 6.0 s (1 past run of this stage, scaled from 6 to 8 steps)",
        "",
        "what follows may run; it is skipped where all it is made from comes out the same",
        "  distill@fast-{0,1}  16 s",
        "  report              unknown",
        "",
        "in all: 4 stages, about 22 s one after another, 14 s with 2 at a time",
        "not counted, for want of a past run's time: report",
    ]
    told = list(explanation_lines(explain(tiny.layout, tiny.tasks, ["teacher", "distill"])))
    assert told == [
        "teacher: up to date",
        "  params  teacher",
        "  code    stages/teacher.py",
        "  took    about 4.0 s (1 past run of this stage)",
        "",
        "distill@fast-{0,1}: 2 stages, may run",
        "  after  substitute@fast, which changed",
        "  takes  about 16 s in all (1 past run each of this stage)",
        "",
        "distill@dfnd-0: up to date",
        "  from    substitute@dfnd",
        "  params  recipes.dfnd",
        "  code    distill",
        "  took    about 5.0 s (1 past run of this stage)",
        "",
        "distill@dfnd-1: up to date",
        "  from    substitute@dfnd",
        "  params  recipes.dfnd",
        "  code    distill",
        "  took    about 5.0 s (1 past run of this stage)",
        "",
        "what follows may run; it is skipped where all it is made from comes out the same",
        "  report  unknown",
        "",
        "in all: 3 stages, about 16 s one after another",
        "not counted, for want of a past run's time: report",
    ]


def test_names_and_durations() -> None:
    assert together(["a@b"]) == "a@b"
    assert together(["a@x-10-1", "a@x-10-2"]) == "a@x-10-{1,2}"
    assert together(["a@fast-0", "a@fast-12"]) == "a@fast-{0,12}"
    assert together([f"a@{n}" for n in range(9)]) == "a@{0,1,2,3,4,... 9 in all}"
    told = {0.04: "0.0 s", 9.96: "10 s", 59.4: "59 s", 59.6: "1 min 00 s", 3599.6: "1 h 00 min"}
    assert {seconds: duration(seconds) for seconds in told} == told
    assert duration(2 * 3600 + 5 * 60) == "2 h 05 min"


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real pipeline, as it is before anything ran."""
    root = tmp_path / "unrun"
    for folder in ("kdci", "stages"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, root)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", root / "params.yaml")
    monkeypatch.chdir(root)
    return root


@pytest.mark.slow
def test_the_command_before_anything_ran(unrun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "--limit", "2"]) == 0
    told = capsys.readouterr().out
    assert "teacher@wrn-10-1: will run\n  new    never run here" in told
    assert "evaluate@wrn-10-1-wrn-10-1-{fast,dfnd}: 2 stages, will run" in told
    assert "in all: 12 stages\n" in told

    assert run(["explain", "distill", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["fate"] for one in found["stages"]] == ["runs"] * 4
    assert {one["group"] for one in found["following"]} == {"evaluate", "report"}
    assert len(found["cost"]["unknown"]) == found["cost"]["num_stages"] == 7

    assert run(["explain", "distil"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'distill'" in captured.err
    assert run(["explain", "--limit", "0"]) == 2


@pytest.mark.slow
def test_the_real_pipeline_runs_what_was_explained(
    smoke_project, tiny_made, environment: dict[str, str], tmp_path: Path
) -> None:
    """Edit a method, a recipe and a file of the built pipeline; then one real `dvc repro`."""
    root = tmp_path / "project"
    shutil.copytree(smoke_project.root, root)
    project = type(tiny_made)(root, environment)
    real = type(smoke_project)(root)
    tasks = tasks_of(current_graph(root))
    project.dvc("commit", "--force", "--quiet")
    assert explain(real.layout, tasks).stages == ()
    real.edit(methods__dfnd__num_selected=60)
    with (root / "kdci/deconfounding/compensation.py").open("a") as file:
        file.write("_ADDED = 1\n")
    current_graph(root)
    explanation = explain(real.layout, tasks)
    ran, restored = project.repro()
    assert restored == set()
    assert fates(explanation, Fate.runs) <= ran <= fates(explanation, Fate.runs, Fate.may_run)
    assert {"substitute@wrn-10-1-dfnd-0", "distill@wrn-10-1-wrn-10-1-fast-kdci-0-0"} <= ran
    assert not {name for name in ran if name.startswith("teacher")}
    assert explanation.cost.unknown == ("report",)
