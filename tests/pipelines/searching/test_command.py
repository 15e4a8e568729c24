"""`kdci sweep --search` on the command line: every option arrives, and none is ignored."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.params.presets import preset_text
from pipelines.searching import command
from pipelines.searching.options import SearchOptions

from .test_results import search_of


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the command asks for, in place of a search."""
    found = {}

    def note(root, options, **connection):
        found.update(root=root, options=options, connection=connection)
        return 7

    monkeypatch.setattr(command, "search_space", note)
    (tmp_path / "params.yaml").touch()

    def call(*arguments):
        found.clear()
        return cli.run(["--root", str(tmp_path), "sweep", *arguments]), found

    return call


def test_the_record_ends_once_the_search_has_let_go(monkeypatch, tmp_path):
    order = []

    @contextmanager
    def recorder(root):
        order.append("recorded from here")
        yield
        order.append("recorded")

    @contextmanager
    def only_runner(layout, what):
        yield
        order.append("let go")

    def tune(*settings):
        order.append("trials")
        settings[-1].signal_number = 2

    search = search_of()
    (tmp_path / "params.yaml").write_text(preset_text("digits-smoke"))
    (tmp_path / ".kdci/searches/s").mkdir(parents=True)
    monkeypatch.setattr(command, "Recorder", recorder)
    monkeypatch.setattr(command, "ray_session", lambda **options: nullcontext())
    monkeypatch.setattr(command, "only_runner", only_runner)
    monkeypatch.setattr(command, "prepare", lambda root, params, options: ({}, search))
    monkeypatch.setattr(command, "tune_trials", tune)
    assert command.search_space(tmp_path, SearchOptions(), track=True) == 130
    assert order == ["recorded from here", "trials", "let go", "recorded"]


def test_defaults_are_those_of_the_options(asked):
    code, found = asked("--space", "a.b=int(1, 2)")
    assert code == 7
    assert found["options"] == SearchOptions(keys=["a.b=int(1, 2)"])
    assert found["connection"] == {"address": None, "allow_no_token": False, "track": True}


def test_every_option_arrives(asked):
    given = {
        "search": "space.yaml",
        "space": "a.b=int(1, 2)",
        "trials": "3",
        "name": "n",
        "criterion": "accuracy:train",
        "scheduler": "none",
        "searcher": "random",
        "search-seed": "4",
        "grace": "5",
        "reduction": "6",
        "method": "cmi",
        "variant": "vanilla",
        "teacher": "t",
        "student": "s",
        "pool-seeds": "7,8",
        "seeds": "9",
        "max-concurrent": "10",
        "cpus-per-trial": "0.5",
        "gpus-per-trial": "0.25",
        "max-failures": "11",
        "address": "host:1",
    }
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]
    _, found = asked(*arguments, "--allow-no-token")
    assert found["options"] == SearchOptions(
        space=Path("space.yaml"),
        keys=["a.b=int(1, 2)"],
        num_trials=3,
        name="n",
        criterion="accuracy:train",
        scheduler="none",
        searcher="random",
        seed=4,
        grace=5,
        reduction=6,
        method="cmi",
        variant="vanilla",
        teacher="t",
        student="s",
        pool_seeds=[7, 8],
        seeds=[9],
        limit=10,
        cpus=0.5,
        gpus=0.25,
        max_failures=11,
    )
    assert found["connection"] == {"address": "host:1", "allow_no_token": True, "track": True}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trials", "3"), "--trials: is an option of a search"),
        (("distill", "--pool-seeds", "1"), "--pool-seeds: is an option of a search"),
        (("distill", "--space", "a=int(1, 2)"), "distill: stages are of no use to a search"),
        (("--space", "a=int(1, 2)", "--pool-seeds", "x"), "--pool-seeds: 'x' is no list"),
    ],
)
def test_what_is_refused(asked, capsys, arguments, said):
    code, found = asked(*arguments)
    assert (code, found) == (2, {})
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trials", "0"), "--trials: is 0"),
        (("--grace", "0"), "--grace: is 0"),
        (("--reduction", "1"), "--reduction: is 1"),
        (("--scheduler", "pbt"), "--scheduler: unknown value 'pbt'"),
        (("--searcher", "grid"), "--searcher: unknown value 'grid'"),
        (("--name", "../x"), "--name: '../x' is no name"),
        (("--max-concurrent", "0"), "--max-concurrent: is 0"),
        (("--criterion", "accuracy:test"), "--criterion: a search that sees the test split"),
        (("--seeds", "1,1"), "--seeds: [1, 1]"),
        (("--method", "cmi"), "--method: cmi can not be searched"),
    ],
)
def test_options_that_make_no_sense_run_nothing(fresh, capsys, monkeypatch, options, said):
    monkeypatch.setattr(command, "Recorder", lambda root: pytest.fail("it was recorded"))
    space = ("--space", "compensation.scale=uniform(1, 2)")
    assert cli.run(["--root", str(fresh.root), "sweep", *space, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (fresh.root / ".kdci" / "searches").exists()
