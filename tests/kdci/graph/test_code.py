"""What a stage's code is, against a package written by hand and what a run really executes."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest

import kdci.graph.code as subject
from kdci.deconfounding.arms import FURTHER_ARMS
from kdci.graph.build import graph_of
from kdci.graph.code import GLUE, Code, Sources, read_source
from kdci.graph.node import KINDS
from kdci.substitution.registry import names
from tests.project_code import ROOT

MODULES = {
    "ours/__init__.py": "",
    "ours/a.py": "import ours.b\nfrom ours.sub import c\n",
    "ours/b.py": "def f():\n    from ours.late import g\n    return g\n",
    "ours/late.py": "g = 1\n",
    "ours/sub/__init__.py": "from ours.sub.inner import x\n",
    "ours/sub/inner.py": "x = 1\n",
    "ours/sub/c.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ours.typed\n"
    ),
    "ours/typed.py": "t = 1\n",
    "ours/unused.py": "u = 1\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def of(*roots: str, **settings: object) -> Code:
    return Code("x", roots, **settings)  # type: ignore[arg-type]


def test_closure_is_what_is_imported_at_any_depth_and_place(package: Path) -> None:
    found = set(Sources(package).closure(of("ours.a")))
    expected = {"ours", "ours.a", "ours.b", "ours.late", "ours.sub", "ours.sub.c", "ours.sub.inner"}
    assert found == expected
    assert set(Sources(package).closure(of("ours.a", cut=frozenset({"ours.sub"})))) == {
        *("ours", "ours.a", "ours.b", "ours.late")
    }
    # What is cut may be asked for by itself.
    both = of("ours.a", "ours.sub.inner", cut=frozenset({"ours.sub.inner", "ours.b"}))
    assert set(Sources(package).closure(both)) == expected - {"ours.b", "ours.late"}


def test_fingerprint_follows_code_and_nothing_else(package: Path) -> None:
    def now() -> str:
        return Sources(package).fingerprint(of("ours.a"))

    first = now()
    (package / "ours/unused.py").write_text("u = 2\n")
    (package / "ours/typed.py").write_text("t = 2\n")
    (package / "ours/late.py").write_text('"""Says what."""\n\n# and why\ng = 1  # here\n\n\n')
    assert now() == first
    (package / "ours/late.py").write_text("g = 2\n")
    changed = now()
    assert changed != first
    (package / "ours/late.py").write_text("g = '# no comment'\n")
    assert now() not in (first, changed)
    assert Sources(package).fingerprint(of("ours.a", values="v")) != now()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1", "x = 1  # one", True),
        ("def f():\n    return 1", 'def f():\n    """Doc."""\n    return 1', True),
        (
            "class A:\n    x: int = 1",
            'class A:\n    """D."""\n\n    x: int = 1\n    """X."""',
            True,
        ),
        ("x = '#'", "x = '#a'", False),
        ("x = 'a'", "x = 'b'", False),
        ("x = '''a\n\nb'''", "x = '''a\nb'''", False),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()", False),
        ('def f(): """Doc."""', 'def f(): """Other."""', False),
        ("f'{a!r:>{b}}#'", "f'{a!r:>{b}}'", False),
    ],
)
def test_what_counts_of_a_text(one: str, other: str, same: bool) -> None:
    assert (read_source(one).digest == read_source(other).digest) is same


def test_what_was_read_is_remembered_until_the_file_changes(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = package / "code.json"
    first = Sources(package, memory)
    expected = first.fingerprint(of("ours.a"))
    first.remember()
    asked: list[str] = []
    monkeypatch.setattr(
        subject, "read_source", lambda text: asked.append(text) or read_source(text)
    )
    assert Sources(package, memory).fingerprint(of("ours.a")) == expected and not asked
    (package / "ours/late.py").write_text("g = 2 + 1\n")
    assert Sources(package, memory).fingerprint(of("ours.a")) != expected
    assert asked == ["g = 2 + 1\n"]
    for damaged in ("{", "[]", '{"a": 1}'):
        memory.write_text(damaged)
        assert Sources(package, memory).fingerprint(of("ours.a")) != expected


def test_glue_is_there() -> None:
    for module in GLUE:
        place = ROOT / module.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "method"),
    [
        *(("teacher", "fast"), ("dictionary", "fast"), ("evaluate", "fast")),
        *product(
            ("substitute", "vanilla", "kdci", "logit_adjusted", "stratified"), ("fast", "dfnd")
        ),
    ],
)
def test_all_code_that_runs_counts_or_is_glue(built, call, stage: str, method: str) -> None:
    """Without regard to imports: what the closure leaves out runs no code."""
    if stage in FURTHER_ARMS:
        built.edit(grid__arms=[stage])
    this, ran = call(stage, method), set[str]()

    def note(frame, event, argument):  # type: ignore[no-untyped-def]
        if event == "call":
            ran.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        code = built.run(this)
    finally:
        sys.setprofile(None)
    assert code == 0
    counted = {str(file) for file in Sources().closure(built.node(this).code).values()}
    ours = {file for file in ran if file.startswith((f"{ROOT}/kdci/", f"{ROOT}/stages/"))}
    glue = {
        file
        for file in ours
        for module in GLUE
        if file.startswith(f"{ROOT}/{module.replace('.', '/')}")
    }
    assert f"{ROOT}/stages/{this.stage}.py" in ours - glue
    # Params are validated whole, those of other methods too; whoever scales their steps counts it.
    validated = {f"{ROOT}/kdci/{name}.py" for name in ("config/recipes", "substitution/block")}
    others = {f"{ROOT}/kdci/methods/{name}.py" for name in names() if name != method}
    assert ours - glue - counted - validated - others == set()


def test_a_method_counts_for_its_own_cells_alone(fresh) -> None:
    closures = {
        node.code.name: set(Sources().closure(node.code))
        for node in graph_of(fresh.params, fresh.root).nodes.values()
    }
    assert {node.partition("-")[0] for node in closures} == {*KINDS} - {"shift"}
    with_fast = {name for name, modules in closures.items() if "kdci.methods.fast" in modules}
    assert with_fast == {"substitute-fast", "distill-fast-vanilla", "distill-fast-kdci"}
    compensated = {n for n, m in closures.items() if "kdci.deconfounding.compensation" in m}
    assert compensated == {"distill-fast-kdci", "distill-dfnd-kdci", "evaluate"}
