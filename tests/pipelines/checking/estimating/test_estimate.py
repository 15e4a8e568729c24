"""`kdci check --estimate`: counts times what was measured; measured once, and for real."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kdci.config.params import Params
from kdci.config.params_file import load_params
from kdci.store.layout import Layout
from pipelines.checking.estimating import measured
from pipelines.checking.estimating.estimate import Estimate, estimate
from pipelines.checking.estimating.stages import StageNeed
from pipelines.checking.estimating.subjects import Pair
from pipelines.checking.estimating.text import estimate_lines
from pipelines.cli import run as kdci
from pipelines.params.edit import write_preset
from pipelines.params.presets import FOLDER
from tests.conftest import Project

IMAGE, STEP, REFRESH = 1e-3, 0.01, 0.25
"""Seconds of a prediction, of a step, and of a refresh."""
POOL = 80.0
"""Seconds of a pool at budget 1."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of processes, which answer without measuring."""
    found = []

    def answer(
        layout: Layout, params: Params, subject: Any, budgets: tuple[float, ...]
    ) -> dict[str, Any]:
        found.append(subject)
        facts = {"start": 1.0, "hardware": "a machine", "memory": 10**9}
        if isinstance(subject, Pair):
            return {
                **facts,
                "pool": {str(budget): POOL * budget for budget in budgets},
                "refresh": {str(budget): REFRESH for budget in budgets},
                "steps": dict.fromkeys(subject.arms, STEP),
                "pool_peak": 3 * 10**8,
                "peak": 4 * 10**8,
                "is_made_up": subject.method == "dfnd",
            }
        numbers = {"predict": IMAGE, "decoding": 0.0, "state": 10**6, "peak": 2 * 10**9}
        return {**facts, **numbers, "train": STEP if subject.trained else None}

    monkeypatch.setattr(measured, "_ask", answer)
    return found


def smoke(tmp_path: Path, **values: Any) -> tuple[Params, Layout]:
    shutil.copy(FOLDER / "digits-smoke.yaml", tmp_path / "params.yaml")
    project = Project(tmp_path).edit(**values)
    return project.params, project.layout


def preset(tmp_path: Path, name: str) -> tuple[Params, Layout]:
    write_preset(name, tmp_path / "params.yaml")
    params = load_params(tmp_path / "params.yaml")
    return params, Layout(tmp_path, params.preset)


def stages_of(found: Estimate, kind: str, method: str = "") -> list[StageNeed]:
    return [need for need in found.stages if (need.kind, need.method) == (kind, method)]


def seconds_of(needs: Iterable[StageNeed]) -> float:
    return sum(need.seconds or 0.0 for need in needs)


def time_of(found: Estimate, kind: str, method: str = "") -> float:
    return seconds_of(stages_of(found, kind, method))


def told(found: Estimate, root: Path) -> str:
    return "\n".join(estimate_lines(found, root))


def test_seconds_are_counts_times_what_was_measured(tmp_path: Path, asked: list[Any]) -> None:
    params, layout = smoke(tmp_path, runtime__threads=1, grid__arms=["class_balanced"])
    found = estimate(params, layout)
    # A start, 2 epochs of 8 steps, 899 test images.
    assert time_of(found, "teacher") == pytest.approx(1 + STEP * 2 * 8 + IMAGE * 899)
    # 2 calls of 16 images, of which 2 are held out, are predicted.
    assert time_of(found, "pool", "fast") == pytest.approx(1 + POOL + IMAGE * 30)
    assert time_of(found, "dictionary", "fast") == pytest.approx(1 + IMAGE * 30)
    # Three students of 12 steps with a refresh at each of 2 epochs; one's batches are drawn by
    # labels, of the pool and of what is added.
    students = 3 * (1 + 12 * STEP + 2 * REFRESH) + IMAGE * (30 + 2 * 16)
    assert time_of(found, "student", "fast") == pytest.approx(students)
    # Two students' snapshots and what is held out of 64 chosen images, by both networks; the
    # test images twice by the teacher, and 61 images of the pool.
    passes = 3 * 2
    scored = 3 + passes * 3 + 2 * 899 + passes * 899 + 61
    assert time_of(found, "evaluation", "dfnd") == pytest.approx(1 + IMAGE * scored)
    assert found.num_stages == len(found.stages) == 1 + 2 + 2 + 6 + 2


def test_what_is_in_place_is_not_counted(built: Project, asked: list[Any]) -> None:
    whole = estimate(built.params, built.layout)
    assert (whole.num_stages, whole.stages, asked) == (11, [], [])
    assert "11 of 11 artifacts are in place and not counted" in told(whole, built.root)
    shutil.rmtree(built.layout.artifacts / "students" / "wrn-10-1/wrn-10-1/fast/kdci")
    (need,) = estimate(built.params, built.layout).stages
    assert (need.kind, need.method) == ("student", "fast")


def test_an_adopted_teacher_is_not_trained(tmp_path: Path, asked: list[Any]) -> None:
    found = estimate(*smoke(tmp_path, teacher__artifact="teachers/{teacher}"))
    assert time_of(found, "teacher") == pytest.approx(1 + IMAGE * 899)
    assert "1 teacher to adopt: " in told(found, tmp_path)


@pytest.mark.parametrize(
    ("threads", "load", "warned"), [(2, 99.0, True), (2, 0.1, False), (1, 99.0, False)]
)
def test_a_busy_machine_is_told(
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    load: float,
    warned: bool,
) -> None:
    """With one thread the processor's own clock counts."""
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    found = estimate(*smoke(tmp_path, runtime__threads=threads))
    said = "others keep this machine busy (load 99.0 on " in told(found, tmp_path)
    assert said == warned


def test_a_device_that_is_not_here_is_told(tmp_path: Path, asked: list[Any]) -> None:
    found = estimate(*smoke(tmp_path, runtime__device="cuda:7"))
    assert "measured on the processor of this machine" in told(found, tmp_path)
    assert found.params.runtime.device == "cpu"


def test_a_budget_takes_its_share(tmp_path: Path, asked: list[Any]) -> None:
    """Each pair is measured once for all of them."""
    found = estimate(*preset(tmp_path, "table1-cifar10"))
    assert len(asked) == len(set(asked)) == 7 + 6 * 5
    teachers = time_of(found, "teacher")
    students = seconds_of(need for need in found.stages if need.kind == "student")
    whole, tenth, hundredth = map(seconds_of, found.by_budget.values())
    assert not any(need.unknown for needs in found.by_budget.values() for need in needs)
    assert [*found.by_budget] == [1.0, 0.1, 0.01]
    # Teachers are not scaled, nor how often students are scored.
    assert teachers + 0.1 * students < tenth < whole
    assert teachers + 0.01 * students < hundredth < tenth


def test_memory_is_the_most_that_was_taken(tmp_path: Path, asked: list[Any]) -> None:
    found = estimate(*smoke(tmp_path))
    needs = {need.kind: need.memory for need in found.stages if need.memory}
    # A teacher's training images come on top.
    assert needs == {
        "teacher": 2 * 10**9 + 898 * 16**2,
        "pool": 3 * 10**8,
        "student": 4 * 10**8,
    }
    assert "2.0 GB  teacher@wrn-10-1  MORE THAN THERE IS" in told(found, tmp_path)


def test_a_data_set_that_is_missing_is_told(tmp_path: Path, asked: list[Any]) -> None:
    words = told(estimate(*preset(tmp_path, "table3")), tmp_path)
    assert "imagenet is published in 150 GB of archives" in words
    assert "at least 600,000 images  missing: data/open-world" in words
    assert "timed on made-up images in the place of the open world: dfnd" in words


def test_disk_holds_pools_students_and_growing_banks(tmp_path: Path, asked: list[Any]) -> None:
    found = estimate(*smoke(tmp_path, grid__methods=["fast"]))
    (pool,), students = stages_of(found, "pool", "fast"), stages_of(found, "student", "fast")
    row = 16 * 16
    assert pool.num_bytes == 32 * row + 30 * 10 * 4  # and the teacher's logits
    # A student and two snapshots each; 2 epochs add a batch of 16.
    assert [need.num_bytes for need in students] == 2 * [3 * 10**6]
    assert {need.work_bytes for need in students} == {2 * 16 * row}
    said = told(found, tmp_path)
    assert re.search(r"2 students +6.0 MB +and 8 kB while the largest is made\n", said)


def test_what_was_measured_is_kept_until_it_changes(tmp_path: Path, asked: list[Any]) -> None:
    params, layout = smoke(tmp_path)
    first, num_asked = estimate(params, layout), len(asked)
    again = estimate(params, layout)
    assert (len(asked), again.stages) == (num_asked, first.stages)
    for change, method in (("methods.fast", "fast"), ("recipes.dfnd", "dfnd")):
        block, name = change.split(".")
        edited, _ = smoke(
            tmp_path,
            **{f"{block}__{name}__temperature": 7.0}
            if block == "methods"
            else {f"{block}__{name}__batch_size": 6},
        )
        asked.clear()
        estimate(edited, layout)
        assert [getattr(one, "method", "") for one in asked] == [method]


def test_what_was_not_measured_is_said(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params, layout = smoke(tmp_path, grid__methods=["fast"])
    found = estimate(params, layout, seconds=0.0)
    words = told(found, tmp_path)
    assert "not measured (no time was left; run it again to go on): wrn-10-1, fast on " in words
    assert all(need.seconds is None and need.unknown for need in found.stages)
    assert "0.0 s or more" in words
    monkeypatch.setattr(measured, "_ask", lambda *_: {"error": "the teacher has no BatchNorm"})
    words = told(estimate(params, layout), tmp_path)
    assert "not measured (the teacher has no BatchNorm): wrn-10-1, fast on wrn-10-1 to " in words


def test_a_process_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured.sys, "executable", "/bin/false")
    found = estimate(*smoke(tmp_path, grid__methods=["fast"]))
    assert "not measured (its process ended with 1): " in told(found, tmp_path)


def test_the_estimate_is_printed_where_data_is_missing(
    tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_preset("table1-cifar10", tmp_path / "params.yaml")
    assert kdci(["--root", str(tmp_path), "check", "--estimate"]) == 2
    words = capsys.readouterr()
    assert words.err.count("kdci: error: ") == 2
    assert words.err.count("measuring ") == len(asked)
    assert words.out.startswith("estimate of table1-cifar10 at budget 1: ")
    assert re.search(r"cifar10, training +50,000 images +missing: data\n", words.out)
    for method in ("dafl", "fast", "cmi", "deepinv", "mosaick", "dfnd"):
        assert re.search(rf"^ +{method} ", words.out, re.MULTILINE)


@pytest.mark.slow
def test_a_good_project_is_estimated_for_real(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command to the method's own code: in a few seconds, with nothing left out."""
    smoke(tmp_path, grid__methods=["fast"], runtime__threads=1)
    arguments = ["--root", str(tmp_path), "check", "--estimate"]
    assert kdci(arguments) == 0
    words = capsys.readouterr().out
    assert words.startswith("ok: 2 cells")
    assert "comes with scikit-learn" in words and "not measured" not in words
    assert kdci(arguments) == 0
    assert "measuring" not in capsys.readouterr().err
