"""`kdci run --no-prefect`: what it runs, tells, notes and returns; stopped, killed, and refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kdci.config.params_file import load_params
from kdci.errors import UserError
from kdci.graph.build import graph_of
from kdci.store.layout import Layout
from pipelines.cli import run as kdci
from pipelines.graph.dag import Dag, DagStage
from pipelines.params.presets import preset_text
from pipelines.running import stage_process
from pipelines.running.journal import read
from pipelines.running.limits import Run, crowding, default_limit
from pipelines.running.run_command import run_stages
from pipelines.running.scheduler import Scheduler
from pipelines.running.stage_process import Outcome, State
from tests.pipelines._servers import CELL, RunProject, finish, until
from tests.project_code import ROOT

PLAIN = {"prefect": False, "track": False}
QUICK = """
stages:
  first:
    cmd: printf 'a word\\n' && printf one > first.txt
    outs: [first.txt]
  second:
    cmd: cat first.txt word.txt > second.txt
    deps: [first.txt, word.txt]
    outs: [second.txt]
  broken:
    cmd: "printf 'kdci: error: loss: is not finite\\\\n' >&2; exit $(cat code.txt)"
    deps: [code.txt]
    outs: [broken.txt]
  after:
    cmd: cat second.txt broken.txt > after.txt
    deps: [second.txt, broken.txt]
    outs: [after.txt]
  aside:
    cmd: cp word.txt aside.txt
    deps: [word.txt]
    outs: [aside.txt]
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with valid params and stages that take no time; one of them fails."""
    root = tmp_path / "quick"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "dvc.yaml").write_text(QUICK)
    (root / "params.yaml").write_text(preset_text("digits-smoke"))
    (root / "word.txt").write_text("two")
    (root / "code.txt").write_text("5")
    monkeypatch.chdir(root)
    monkeypatch.setattr(stage_process, "RETRY_DELAYS", ())
    return root


def outcomes(root: Path, *, since: int = 0) -> dict[str, str]:
    return {entry.stage: entry.outcome for entry in read(Layout(root, ""))[since:]}


# -- what it runs and tells ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failed_stage_costs_what_needs_it_and_no_more(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stages(quick, **PLAIN) == 5
    said = capsys.readouterr()
    assert "first  a word" in said.out.splitlines()
    assert "5 stages: 3 completed, 1 failed, 1 not run" in said.out.splitlines()
    assert said.err.splitlines()[-2:] == ["broken failed:", "  kdci: error: loss: is not finite"]
    assert (quick / "second.txt").read_text() == "onetwo"
    assert not (quick / "after.txt").exists()
    entries = {entry.stage: entry for entry in read(Layout(quick, ""))}
    assert set(entries) == {"first", "second", "broken", "aside"}  # what was not run is no line
    assert entries["broken"].outcome == "failed"
    assert entries["broken"].exit_code == 5
    assert {entry.runner for entry in entries.values()} == {"plain"}
    assert all(entry.seconds > 0 and entry.started > 1e9 for entry in entries.values())

    # The next run does what is left, and no more.
    (quick / "code.txt").write_text("0; touch broken.txt")
    (quick / "dvc.yaml").write_text(QUICK.replace("exit $(cat code.txt)", "touch broken.txt"))
    before = len(read(Layout(quick, "")))
    assert run_stages(quick, **PLAIN) == 0
    assert outcomes(quick, since=before) == {"broken": "completed", "after": "completed"}
    assert "5 stages: 2 completed, 3 cached" in capsys.readouterr().out.splitlines()
    before = len(read(Layout(quick, "")))
    assert run_stages(quick, **PLAIN) == 0
    assert "5 stages: 5 cached" in capsys.readouterr().out.splitlines()
    assert outcomes(quick, since=before) == {}


def test_targets_are_run_with_what_they_need(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stages(quick, targets=["sec*"], **PLAIN) == 0
    assert outcomes(quick) == {"first": "completed", "second": "completed"}
    assert "2 stages: 2 completed" in capsys.readouterr().out.splitlines()


def test_seeds_are_written_before_anything_runs(quick: Path) -> None:
    assert run_stages(quick, targets=["aside"], seeds=[2, 3], **PLAIN) == 0
    assert tuple(load_params(quick / "params.yaml").grid.seeds) == (2, 3)


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["secnod"], "did you mean 'second'?"),
        (["--limit", "0"], "--limit: is 0 (give 1 or more)"),
        (["--limit", "-3"], "--limit: is -3"),
        (["--seeds", "0,x"], "--seeds: '0,x' is no list of numbers"),
        (["--seeds", "0,0"], "grid.seeds"),
        (["--preset", "digit"], "did you mean 'digits'?"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_run(
    quick: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    before = (quick / "params.yaml").read_text()
    assert kdci(["run", "--no-prefect", "--no-track", *arguments]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("kdci: error: ")
    assert told in line
    assert said.out == ""
    assert (quick / "params.yaml").read_text() == before
    assert outcomes(quick) == {}


def test_what_would_stop_a_stage_is_found_before_any_runs(
    quick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = preset_text("digits-smoke").replace("path: null\n  test:", "path: nowhere\n  test:")
    assert "nowhere" in text
    (quick / "params.yaml").write_text(text)
    assert kdci(["run", "--no-prefect", "--no-track"]) == 2
    assert "data.path" in capsys.readouterr().err
    assert outcomes(quick) == {}


def test_what_is_refused_never_comes_to_prefect(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prefect", None)
    with pytest.raises(UserError, match="--limit"):
        run_stages(quick, limit=0)


HOLDER = """
import sys, time
from pathlib import Path
from kdci.store.layout import Layout
from pipelines.running.workspace import only_runner
with only_runner(Layout(Path(sys.argv[1]), ""), "kdci run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(quick: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs stages in the project."""
    command = [sys.executable, "-c", HOLDER, str(quick)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_run_is_refused_at_once_and_told_by_whom(
    quick: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert kdci(["run", "--no-prefect", "--no-track"]) == 6
    assert time.monotonic() - began < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"kdci run, process {holder.pid} since 20" in line
    assert outcomes(quick) == {}
    holder.kill()
    holder.wait()
    assert kdci(["run", "--no-prefect", "--no-track", "aside"]) == 0


# -- exit codes and limits -------------------------------------------------------------------------


def run_of(*ended: Outcome, stopped_by: int | None = None) -> Run:
    dag = Dag({outcome.stage: DagStage(outcome.stage, "", ()) for outcome in ended})
    scheduler = Scheduler(dag, lambda name, hear: pytest.fail("nothing is to be run"), limit=1)
    for outcome in ended:
        scheduler._entries[outcome.stage].outcome = outcome
    scheduler.stopped_by = stopped_by
    params = load_params(Path("pipelines/presets/digits-smoke.yaml"))
    return Run(graph_of(params, Path("/project")), dag, scheduler, 1)


def failed(stage: str, code: int) -> Outcome:
    return Outcome(stage, State.failed, "told", exit_code=code)


DONE = Outcome("a", State.completed)
NOT_RUN = Outcome("z", State.not_run, "b has no result")


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ([DONE, Outcome("b", State.cached), Outcome("c", State.restored)], 0),
        ([], 0),
        ([DONE, failed("b", 2), NOT_RUN], 2),
        ([failed("b", 5), failed("c", 2), NOT_RUN], 5),
        ([failed("b", 1)], 1),
        ([failed("b", 255)], 1),  # DVC itself
        ([failed("b", -9)], 1),
        ([failed("b", 137), failed("c", 3)], 3),
    ],
)
def test_exit_code_is_that_of_the_gravest_failure(
    ended: list[Outcome], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_of(*ended).exit_code == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_exit_code_of_a_stopped_run_is_that_of_its_signal(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_of(DONE, failed("b", 5), stopped_by=number).exit_code == 128 + number


@pytest.mark.parametrize(
    ("threads", "device", "cores", "limit"),
    [
        (1, "cpu", 8, 8),
        (4, "auto", 10, 2),
        (16, "cpu", 8, 1),
        ("auto", "cpu", 8, 1),
        (1, "cuda:0", 8, 1),
    ],
)
def test_limit_is_what_the_cores_carry(
    threads: int | str, device: str, cores: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.running.limits._available_cores", lambda: cores)
    root = ROOT
    params = load_params(root / "pipelines/presets/digits-smoke.yaml")
    runtime = params.runtime.model_copy(update={"threads": threads, "device": device})
    assert default_limit(params.model_copy(update={"runtime": runtime})) == limit


@pytest.mark.parametrize(
    ("threads", "device", "limit", "each"),
    [
        ("auto", "auto", 2, 8),
        (3, "cpu", 3, 3),
        (8, "cpu", 2, 8),
        (4, "cpu", 2, None),
        ("auto", "cpu", 1, None),
        (16, "cpu", 1, None),
        ("auto", "cuda:0", 2, None),
    ],
)
def test_more_threads_than_cores_at_a_time_are_warned_about(
    threads: int | str,
    device: str,
    limit: int,
    each: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.running.limits._available_cores", lambda: 8)
    root = ROOT
    params = load_params(root / "pipelines/presets/digits-smoke.yaml")
    runtime = params.runtime.model_copy(update={"threads": threads, "device": device})
    warning = crowding(params.model_copy(update={"runtime": runtime}), limit)
    if each is None:
        assert warning is None
    else:
        assert warning is not None
        assert f"{limit} stages at a time have {each} threads each" in warning
        assert f"(runtime.threads: {threads}) on 8 cores" in warning


# -- the whole pipeline, stopped and killed --------------------------------------------------------

STUDENT = f"distill@{CELL}-dfnd-vanilla-0-0"
LONG = {"recipes__dfnd__num_epochs": 4, "recipes__dfnd__steps_per_epoch": 350}
"""A student that takes some ten seconds: long enough to be stopped in the middle."""


@pytest.mark.slow
def test_stopped_and_killed_in_the_middle_the_student_is_that_of_an_uninterrupted_run(
    up_to_date: RunProject, tmp_path: Path
) -> None:
    up_to_date.edit(**LONG)
    whole = up_to_date.copy(tmp_path / "whole")
    arguments = ("--no-prefect", "--no-track", STUDENT)
    whole.run_through(*arguments)
    assert whole.ran() == {STUDENT: "completed"}

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = len(up_to_date.journal())
        process = up_to_date.start("run", *arguments)
        up_to_date.await_stage(STUDENT)
        began = time.monotonic()
        os.kill(process.pid, number)
        returned, out, err = finish(process, 60)
        print(f"signal {number}: ended in {time.monotonic() - began:.1f} s")
        assert returned == code, out + err
        assert time.monotonic() - began < 15
        assert up_to_date.stages_alive() == []
        assert up_to_date.ran(since=before) == {STUDENT: "stopped"}
        assert list(up_to_date.root.glob(f".kdci/work/{STUDENT}/*/checkpoint-*.json")), (
            "no state was saved"
        )
        assert "stopping: stages save their state" in err

    for look_first in (True, False):
        process = up_to_date.start("run", *arguments)
        up_to_date.await_stage(STUDENT)
        tree = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if look_first:
            until(lambda: not up_to_date.stages_alive(), 20, "no stage is left of a killed run")
            print(f"kill -9: the last stage left after {time.monotonic() - began:.1f} s")
            assert psutil.wait_procs(tree, timeout=10)[1] == []

    # At once after the second time: a stage that is saving its state is waited for.
    up_to_date.run_through(*arguments)
    assert up_to_date.contents() == whole.contents()
    assert up_to_date.ran()[STUDENT] == "completed"
