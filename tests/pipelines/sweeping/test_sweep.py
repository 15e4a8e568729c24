"""`kdci sweep`: which stages are trials, and real sweeps that are killed, stopped, or fail."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from kdci.errors import UserError
from pipelines.cli import run
from pipelines.graph.current import current_graph
from pipelines.graph.dag import Change, Dag, DagStage
from pipelines.running.workspace import only_runner
from pipelines.sweeping.sweep import (
    Sweep,
    ready_stages,
    split_rest,
    trials_of,
)
from tests.project_code import copy_smoke

RAY = ("raylet", "gcs_server", "ray::")
CELL = "wrn-10-1-wrn-10-1"


# -- what can run when ---------------------------------------------------------------------------


def dag_of(changed: dict[str, str], **upstream: tuple[str, ...]) -> Dag:
    stages = {
        name: DagStage(name, f"python -m stages.{name}", parents)
        for name, parents in upstream.items()
    }
    changes = {name: (Change(kind, "x", "modified"),) for name, kind in changed.items()}
    return Dag(stages, changes)


CHAIN = {
    "teacher": (),
    "pool": ("teacher",),
    "student": ("pool",),
    "other": ("teacher",),
    "evaluate": ("student", "other"),
    "report": ("evaluate",),
}
TRIALS = ("teacher", "pool", "student", "other")


def test_stages_are_ready_when_all_that_they_are_made_from_is_up_to_date():
    everything = dict.fromkeys(CHAIN, "dep")
    assert ready_stages(dag_of(everything, **CHAIN), TRIALS) == ["teacher"]
    later = {name: "dep" for name in CHAIN if name != "teacher"}
    assert ready_stages(dag_of(later, **CHAIN), TRIALS) == ["pool", "other"]


def test_a_stage_that_only_follows_waits_for_what_comes_of_its_parents():
    """Its parents may come out as they were; then it is not run at all."""
    assert ready_stages(dag_of({"pool": "param"}, **CHAIN), TRIALS) == ["pool"]


def test_evaluations_and_reports_are_no_trials(fresh):
    stages = {fresh.graph.nodes[name].stage for name in trials_of(fresh.graph)}
    assert stages == {"teacher", "substitute", "dictionary", "distill"}
    dag = dag_of({"evaluate": "dep", "report": "dep"}, **CHAIN)
    assert ready_stages(dag, TRIALS) == []
    rest, lost = split_rest(dag, TRIALS)
    assert (list(rest.stages), lost) == (["evaluate", "report"], [])


def test_what_depends_on_a_failed_stage_is_not_run():
    dag = dag_of({"other": "dep", "evaluate": "dep"}, **CHAIN)
    rest, lost = split_rest(dag, TRIALS)
    assert (list(rest.stages), lost) == ([], ["other", "evaluate", "report"])


@pytest.mark.parametrize("wrong", [{"max_concurrent": 0}, {"max_failures": -1}])
def test_counts_that_make_no_sense_are_refused(wrong, tmp_path):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", "-")):
        Sweep(tmp_path, **wrong)


def test_a_workspace_in_use_is_refused(fresh, capsys):
    with only_runner(fresh.layout, "kdci run"):
        assert run(["--root", str(fresh.root), "sweep"]) == 6
    assert f"is in use by kdci run, process {os.getpid()}" in capsys.readouterr().err


# -- real sweeps ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workspace:
    """A project folder with DVC and code of its own."""

    root: Path

    @classmethod
    def make(cls, root: Path, edit: Callable[[dict], None] = lambda tree: None) -> Workspace:
        copy_smoke(root)
        workspace = cls(root)
        workspace.edit(edit)
        return workspace

    def edit(self, edit: Callable[[dict], None]) -> None:
        yaml = YAML()
        tree = yaml.load((self.root / "params.yaml").read_text())
        edit(tree)
        with (self.root / "params.yaml").open("w") as out:
            yaml.dump(tree, out)

    def dvc(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def not_up_to_date(self) -> set[str]:
        """Return the stages that DVC would run; it always looks at `cells`."""
        return {*json.loads(self.dvc("status", "--json"))} - {"cells"}

    def contents(self) -> dict[str, str]:
        """Return the content hash of each artifact: of tensors and metrics, not of wall times."""
        cards = sorted((self.root / "artifacts").rglob("card.json"))
        return {
            str(card.parent.relative_to(self.root)): json.loads(card.read_text())["content"]
            for card in cards
        }

    def accuracies(self) -> list[tuple]:
        rows = json.loads((self.root / "report/results.json").read_text())
        keys = ("method", "variant", "seed", "accuracy", "accuracy_backbone", "teacher_accuracy")
        return sorted(tuple(row[key] for key in keys) for row in rows)

    def journal(self) -> dict[str, dict]:
        """Return the last execution of each stage."""
        lines = (self.root / ".kdci/journal.jsonl").read_text().splitlines()
        return {row["stage"]: row for row in map(json.loads, lines)}

    def at_work(self) -> dict[str, psutil.Process]:
        """Return the processes of the stages that train now, by stage."""
        found = {}
        for metrics in self.root.glob(".kdci/work/*/*/metrics.jsonl"):
            with suppress(OSError, ValueError, psutil.Error):
                identity = json.loads((metrics.parent / "identity.json").read_text())
                if metrics.stat().st_size:
                    found[metrics.parent.parent.name] = psutil.Process(identity["pid"])
        return found

    def sweep(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", "sweep", "--no-track", *arguments],
            cwd=self.root,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def environment(**variables: str) -> dict[str, str]:
    """Return an environment without threads set, whose `python` is this one."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "RAY_"))}
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", **variables}


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leave nothing of a sweep behind, whatever a test finds."""
    try:
        yield process
    finally:
        with suppress(psutil.Error):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()
        process.kill()
        process.wait()


def wait_for(what: Callable[[], object], seconds: float = 300.0) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def processes_in(root: Path) -> list[psutil.Process]:
    """Return what still runs in or for a project folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(root) or str(root) in " ".join(process.cmdline()):
                found.append(process)
    return found


def eight_students(tree: dict) -> None:
    """Two methods, two arms, two seeds; seconds of training each."""
    tree["grid"]["seeds"] = [0, 1]
    for method in tree["grid"]["methods"]:
        tree["recipes"][method].update(num_epochs=4, steps_per_epoch=100)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_worker_and_killed_runner_cost_nothing(tmp_path, two_ray_nodes):
    """Eight students on two nodes: what `dvc repro` makes, and DVC finds it up to date."""
    address, token = two_ray_nodes
    reference = Workspace.make(tmp_path / "reference", eight_students)
    current_graph(reference.root)
    reference.dvc("repro")
    work = Workspace.make(tmp_path / "work", eight_students)

    def sweep() -> subprocess.Popen[str]:
        return work.sweep("--address", address, RAY_AUTH_TOKEN=token)

    def a_student() -> tuple[str, psutil.Process] | None:
        students = {n: p for n, p in work.at_work().items() if n.startswith("distill@")}
        return next(iter(students.items()), None)

    with ended(sweep()) as first:
        name, stage = wait_for(a_student)
        variables = stage.environ()
        assert "OMP_NUM_THREADS" not in variables and "RAY_AUTH_TOKEN" not in variables
        assert variables["DVC_STAGE"] == name
        stage.parent().kill()  # the worker
        stage.wait(timeout=30)  # its stage does not outlive it
        assert list(work.root.glob(f".kdci/work/{name}/*/*.safetensors")), "no checkpoint"
        notes = work.root / f".kdci/ray/attempts/{name}.jsonl"
        wait_for(lambda: notes.exists() and notes.read_text().count("begin") == 2)
        wait_for(lambda: len(list(work.root.glob("artifacts/**/students/**/card.json"))) >= 2)
        assert wait_for(a_student)
        first.kill()
    finished = {p: p.stat().st_mtime for p in work.root.glob("artifacts/**/card.json")}
    assert len(finished) < len(reference.contents())

    with ended(sweep()) as second:
        output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert {path: path.stat().st_mtime for path in finished} == finished, "made again"
    assert work.contents() == reference.contents()
    assert work.accuracies() == reference.accuracies()
    assert work.not_up_to_date() == set()
    assert set(re.findall(r"Running stage '(\S+)'", work.dvc("repro"))) == {"cells"}
    executions = work.journal()
    trials = {name: row for name, row in executions.items() if row["runner"] == "ray"}
    assert {"teacher", "substitute", "dictionary", "distill"} == {
        name.partition("@")[0] for name in trials
    }
    assert {row["outcome"] for row in executions.values()} == {"completed"}
    assert all(row["links"]["ray.trial_id"] for row in trials.values())
    assert len({row["links"]["ray.node_id"] for row in trials.values()}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_sweep_with_states_saved_and_results_recorded(tmp_path, number, code):
    def long_students(tree: dict) -> None:
        tree["grid"]["methods"] = ["fast"]
        tree["recipes"]["fast"].update(num_epochs=300, steps_per_epoch=20)

    work = Workspace.make(tmp_path / "work", long_students)
    with ended(work.sweep("distill@*-vanilla-*", "--max-concurrent", "1")) as sweep:
        name = f"distill@{CELL}-fast-vanilla-0-0"
        stage = wait_for(lambda: work.at_work().get(name))
        os.killpg(sweep.pid, number)  # as a terminal does it
        output, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == code, output
    assert not stage.is_running()
    assert list(work.root.glob(f".kdci/work/{name}/*/*.safetensors")), output
    assert not processes_in(work.root)
    executions = work.journal()
    assert executions[name]["outcome"] == "stopped"
    assert executions["teacher@wrn-10-1"]["outcome"] == "completed"
    status = work.not_up_to_date()
    assert "teacher@wrn-10-1" not in status and "substitute@wrn-10-1-fast-0" not in status
    assert name in status


@pytest.mark.slow
def test_a_failed_trial_does_not_end_the_sweep(tmp_path):
    """Its own last line is told, what depends on it is left out, and the code is its code."""

    def one_diverges(tree: dict) -> None:
        tree["recipes"]["dfnd"].update(learning_rate=1e12)

    work = Workspace.make(tmp_path / "work", one_diverges)
    with ended(work.sweep()) as sweep:
        output, _ = sweep.communicate(timeout=240)
    assert sweep.returncode == 5, output
    made = {path.split("/")[2] + "/" + path.split("/")[-3] for path in work.contents()}
    executions = work.journal()
    failed = {name for name, row in executions.items() if row["outcome"] == "failed"}
    assert failed == {f"distill@{CELL}-dfnd-{arm}-0-0" for arm in ("vanilla", "kdci")}, made
    assert executions[f"evaluate@{CELL}-fast"]["outcome"] == "completed"
    assert f"evaluate@{CELL}-dfnd" not in executions and "report" not in executions
    assert all(executions[name]["exit_code"] == 5 for name in failed)
    told = [line for line in output.splitlines() if " failed: kdci: error:" in line]
    assert len(told) == 2 and all("is nan" in line for line in told), output
    assert "2 not run" in output

    # Mended, only what failed and what follows is run.
    work.edit(lambda tree: tree["recipes"]["dfnd"].update(learning_rate=0.1))
    with ended(work.sweep()) as again:
        output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert "4 stages to see to: 4 completed" in output, output
    assert work.not_up_to_date() == set()
