"""DVC's graph as plain values: order, kin, names, and what its status says of each stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdci.errors import UserError
from pipelines.graph.dag import Change, Dag, DagStage, Verdict, read_dag


def dag_of(edges: dict[str, list[str]], changed: tuple[str, ...] = ()) -> Dag:
    """Return a graph; ``edges`` lists each stage after its parents."""
    stages = {name: DagStage(name, f"run {name}", tuple(up)) for name, up in edges.items()}
    return Dag(stages, {name: (Change("dep", "a.py", "modified"),) for name in changed})


DIAMOND = {"a": [], "b@1": ["a"], "b@2": ["a"], "c": ["b@1", "b@2"], "d": []}


def test_kin_at_any_distance() -> None:
    dag = dag_of(DIAMOND)
    assert dag.descendants(["a"]) == {"b@1", "b@2", "c"}
    assert dag.descendants(["b@1"]) == {"c"}
    assert dag.descendants(["c", "d"]) == set()
    assert dag.ancestors(["c"]) == {"a", "b@1", "b@2"}
    assert dag.ancestors(["b@1", "a"]) == set()


def test_verdicts_follow_from_changes() -> None:
    verdicts = dag_of(DIAMOND, changed=("b@1",)).verdicts
    assert verdicts == {
        "a": Verdict.unchanged,
        "b@1": Verdict.changed,
        "b@2": Verdict.unchanged,
        "c": Verdict.follows,
        "d": Verdict.unchanged,
    }
    assert set(dag_of(DIAMOND).verdicts.values()) == {Verdict.unchanged}


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (["b"], ["b@1", "b@2"]),
        (["b@2"], ["b@2"]),
        (["c", "a"], ["a", "c"]),
        (["b@*"], ["b@1", "b@2"]),
        (["*"], list(DIAMOND)),
        (["b", "b@1"], ["b@1", "b@2"]),
    ],
)
def test_names_are_stages_entries_and_patterns(targets: list[str], named: list[str]) -> None:
    assert dag_of(DIAMOND).named(targets) == named


def test_a_selection_has_what_it_is_made_from_in_order() -> None:
    dag = dag_of(DIAMOND, changed=("a", "d"))
    part = dag.select(["b@2"])
    assert list(part.stages) == ["a", "b@2"]
    assert set(part.changes) == {"a"}
    assert dag.select([]) is dag
    assert list(dag.select(["c"]).stages) == ["a", "b@1", "b@2", "c"]


def test_no_such_stage() -> None:
    with pytest.raises(UserError, match=r"b@3: is no stage.*did you mean 'b@[12]'"):
        dag_of(DIAMOND).select(["a", "b@3"])
    with pytest.raises(UserError, match=r"zzzz: is no stage.*\(see `dvc stage list`\)"):
        dag_of(DIAMOND).named(["zzzz"])


# -- as DVC tells it ------------------------------------------------------------------------------


def test_graph_is_dvcs(tiny_made) -> None:
    dag = read_dag(tiny_made.root)
    assert list(dag.stages) == tiny_made.dvc("stage", "list", "--name-only").split()
    for stage in dag.stages.values():
        earlier = list(dag.stages)[: list(dag.stages).index(stage.name)]
        assert set(stage.upstream) <= set(earlier)
    student = dag.stages["distill@fast-1"]
    assert student.upstream == ("substitute@fast",)
    assert student.command == "python -m stages.distill fast-1"
    assert student.deps == ("artifacts/tiny/pools/fast",)
    assert student.params == ("recipes.fast", "code.distill")
    assert student.outs[0] == "artifacts/tiny/students/fast-1"
    assert student.group == "distill"
    assert dag.changes == {}


def test_changes_are_told_apart(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths are those from the project folder, wherever they are asked for."""
    tiny.edit("methods.fast.num_steps", 4)
    (tiny.root / "stages/report.py").write_text("raise SystemExit\n")
    (tiny.root / "artifacts/tiny/students/dfnd-0/value.txt").unlink()
    (tiny.root / "dvc.yaml").write_text(
        (tiny.root / "dvc.yaml").read_text().replace("stages.teacher\n", "stages.teacher --x 1\n")
    )
    expected = {
        "teacher": (Change("command", "changed command", "modified"),),
        "substitute@fast": (Change("param", "methods.fast", "modified"),),
        "distill@dfnd-0": (Change("out", "artifacts/tiny/students/dfnd-0", "modified"),),
        "report": (
            Change("dep", "stages/report.py", "modified"),
            Change("dep", "artifacts/tiny/students", "modified"),
        ),
    }
    for folder in (tiny.root.parent, tiny.root, tiny.root / "stages"):
        monkeypatch.chdir(folder)
        assert read_dag(tiny.root).changes == expected
    assert read_dag(tiny.root, status=False).changes == {}


def test_where_there_is_no_dvc_project(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dvc\.yaml: .*DVC repository"):
        read_dag(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["stages: [", "stages: {a: {cmd: run, outs: ['${nothing}']}}", "stages: {a: {outs: [b]}}"],
)
def test_an_unreadable_dvc_yaml_is_one_line(tiny, text: str) -> None:
    (tiny.root / "dvc.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_dag(tiny.root)
    assert len(caught.value.lines()) == 1
