"""`kdci doctor`: room on the disk, what was left behind, and the command itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kdci.store import artifacts
from kdci.store.layout import Layout
from pipelines.checking.diagnosis import disk
from pipelines.checking.diagnosis.disk import check_leftovers, check_room, largest_artifact
from pipelines.checking.diagnosis.doctor import examine, exit_code, repaired
from pipelines.checking.diagnosis.findings import Level, ok, problem, warning
from pipelines.cli import run
from tests.pipelines.checking.diagnosis._findings import dead_pid, lines, trouble
from tests.project_code import ROOT

# -- disk and leftovers ---------------------------------------------------------------------------


def test_room_is_measured_against_the_largest_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert largest_artifact(tmp_path) == 0
    for name, length in (("small", 10), ("large", 1000)):
        with artifacts.new_artifact(tmp_path / "artifacts" / name, kind="pool", card={}) as draft:
            draft.save_json("a.json", "x" * length)
    (tmp_path / "artifacts/small/card.json").write_text("{")  # damaged: `kdci verify` tells
    largest = largest_artifact(tmp_path)
    assert 1000 <= largest < 1100

    free = shutil.disk_usage(tmp_path).free
    fine = check_room("the project", tmp_path / "not" / "yet", largest)
    assert fine.level is (Level.ok if free > 10**9 else Level.warning)
    tight = check_room("the project", tmp_path, 2 * free)
    assert (tight.level, tight.exit_code) == (Level.problem, 4)
    assert "the largest artifact takes" in tight.line
    monkeypatch.setattr(disk, "SCARCE_BYTES", 2 * free)
    scarce = check_room("the project", tmp_path, largest)
    assert scarce.level is Level.warning
    assert exit_code([scarce, tight, problem("another")]) == 4


def test_leftovers_are_counted(layout: Layout) -> None:
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", layout.root / "params.yaml")
    assert lines(check_leftovers(layout)) == ["ok       no checkpoint is left over"]
    orphan = layout.work / "work" / "teacher@gone" / "0123456789abcdef"
    orphan.mkdir(parents=True)
    (orphan / "state.pt").write_bytes(b"x" * 3000)
    (layout.root / "artifacts/digits-smoke/pools/.pool0.abcd1234.tmp").mkdir(parents=True)
    assert lines(check_leftovers(layout)) == [
        "warning  2 left-over folders, 3 kB  (run `kdci clean`)"
    ]
    assert orphan.is_dir()
    (layout.root / "params.yaml").write_text("preset: 3\n")
    assert "run `kdci check`" in trouble(check_leftovers(layout))[0]


# -- the command ----------------------------------------------------------------------------------


def test_exit_code_is_that_of_the_gravest_problem() -> None:
    assert exit_code([]) == 0
    assert exit_code([ok("a"), warning("b")]) == 0
    assert exit_code([problem("a"), warning("b")]) == 2


def test_what_mends_several_findings_is_done_once() -> None:
    done = []

    def mend() -> str:
        done.append(1)
        return "mended"

    found = list(repaired([warning("a", "fix", repair=mend), ok("b"), problem("c", repair=mend)]))
    assert lines(found) == ["ok       a: mended", "ok       b", "ok       c: mended"]
    assert done == [1]


@pytest.fixture
def project(tiny, no_servers) -> Path:
    shutil.copy(ROOT / "pipelines/presets/digits-smoke.yaml", tiny.root / "params.yaml")
    no_servers.chdir(tiny.root)
    return tiny.root


def test_the_command_in_a_project(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = dead_pid()
    listed = {"write": {str(project / "a"): {"pid": gone, "cmd": "dvc repro"}}, "read": {}}
    (project / ".dvc/tmp/rwlock").write_text(json.dumps(listed))
    assert run(["doctor"]) == 0  # a dead process is in nobody's way: DVC mends it too
    told = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in told} == {"ok", "warning"}
    assert "DVC has a as in use by process" in "".join(told)
    assert any(line.startswith("ok       DVC's cache: ") for line in told)
    assert any("telemetry" in line or "DVC reports its use" in line for line in told)

    (project / ".dvc/tmp/rwlock").write_text("{")
    assert run(["doctor"]) == 2
    assert "problem" in capsys.readouterr().out


def test_dvcs_reports_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_NO_ANALYTICS", raising=False)
    said = "DVC reports its use to its makers"
    assert any(said in one.what for one in examine(project))
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    monkeypatch.delenv("DVC_NO_ANALYTICS", raising=False)
    assert not any(said in one.what for one in examine(project))


def test_outside_of_a_project_there_are_versions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "Python 3." in told
    assert "workspace" not in told
    assert run(["--root", "nowhere", "doctor"]) == 2
