"""The console command: its names, exit codes and lines, and that it starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import run
from pipelines.params.presets import preset_names

HEAVY = ("torch", "torchvision", "mlflow", "prefect", "ray", "dvc", "sklearn", "numpy", "pandas")
COMMANDS = {
    *("check", "list", "preset", "schema", "show", "run", "sync", "sweep", "promote"),
    *("explain", "doctor", "verify", "clean", "migrate"),
    *("init", "import-teacher", "export", "download"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that was told, and nothing but that."""
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("kdci: error: ")
    return line


@pytest.mark.parametrize(
    "code",
    [
        "import kdci, pipelines.cli",
        "from pipelines.cli import run; assert run(['--help']) == 0",
        "from pipelines.cli import run; assert run(['list', 'methods']) == 0",
        "from pipelines.cli import run; assert run(['preset', '--help']) == 0",
        "from pipelines.cli import run; assert run(['show']) == 2",
        "from pipelines.cli import run; assert run(['check']) == 2",
    ],
)
def test_starts_without_heavy_imports(code: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("preset: x\n")
    check = f"import sys; sys.exit([name for name in {HEAVY} if name in sys.modules] or 0)"
    command = [sys.executable, "-c", f"{code}\n{check}"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    described = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    assert {line.split()[0] for line in described if line.strip()} == COMMANDS
    assert run([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kdci {version('kdci')}\n"


def test_list_prints_one_name_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    from kdci.config.catalog import DATASETS
    from kdci.data.datasets.places import PLACES
    from kdci.models import BACKBONES
    from kdci.substitution.registry import method_names

    known = {
        "methods": method_names(),
        "backbones": list(BACKBONES),
        "datasets": [*PLACES, *(name for name, spec in DATASETS.items() if spec.bundled)],
        "presets": preset_names(),
    }
    for what, names in known.items():
        assert run(["list", what]) == 0
        assert sorted(capsys.readouterr().out.split("\n")) == sorted(["", *names])


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["list"], ["list", "colours"], ["check", "--no-such"], ["preset"]],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert "--help" in only_error(capsys)


@pytest.mark.parametrize(
    "command", ["check", "preset digits", "show", "sync", "verify", "clean", "migrate"]
)
def test_outside_of_a_project(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command.split()) == 2
    assert f"{tmp_path}: neither it nor a folder above" in only_error(capsys)
    assert run(["--root", "nowhere", *command.split()]) == 2
    assert "nowhere: is no folder" in only_error(capsys)


def test_the_project_is_the_nearest_one_upwards(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert run(["preset", "digits"]) == 0
    assert (project / "params.yaml").is_file()
    assert run(["--root", ".", "preset", "digits-smoke"]) == 0
    assert (inner / "params.yaml").is_file()
    assert run(["verify"]) == 0
    assert "artifacts/digits-smoke/" in capsys.readouterr().out


def test_preset_then_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "digits-smoke"]) == 0
    assert run(["check"]) == 0
    assert "\nok: 4 cells (" in capsys.readouterr().out


def test_preset_refuses_to_lose_edits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "params.yaml"
    file.write_text("# mine\n")
    assert run(["preset", "digits"]) == 2
    assert "--force" in only_error(capsys)
    assert file.read_text() == "# mine\n"
    assert run(["preset", "digits", "--force"]) == 0
    assert "preset: digits\n" in file.read_text()


def test_check_tells_params_errors_one_a_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["preset", "digits-smoke"])
    file = project / "params.yaml"
    file.write_text(file.read_text().replace("threads: 1", "threds: 1").replace("[wrn", "[wm", 1))
    capsys.readouterr()
    assert run(["check"]) == 2
    told = capsys.readouterr().err
    assert "kdci: error: runtime.threds: unknown key (did you mean 'threads'?" in told
    assert "kdci: error: grid.teachers.0: unknown backbone" in told


def test_check_tells_missing_data_and_ends_with_2(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["preset", "cifar10-cpu", "--data", "no/where"]) == 0
    capsys.readouterr()
    assert run(["check"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in told] == [
        str(project / "no/where"),
        str(project / "no/where/open-world"),
    ]


def test_show_prints_the_table_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show"]) == 2
    assert "results.json" in only_error(capsys)
    row = {
        "preset": "digits",
        "dataset": "digits",
        "teacher": "wrn-16-1",
        "student": "wrn-10-1",
        "method": "dfnd",
        "pool_seed": 0,
        "seed": 0,
        "teacher_accuracy": 98.5,
        "agreement_backbone": 50.0,
        "num_steps": 400,
        "seconds": 12.5,
        "deploy": "backbone",
    }
    vanilla = {**row, "variant": "vanilla", "accuracy": 27.25, "accuracy_backbone": 27.25}
    vanilla.update(accuracy_compensated=None, agreement_compensated=None)
    kdci = {**row, "variant": "kdci", "accuracy": 35.75, "accuracy_backbone": 35.75}
    kdci.update(accuracy_compensated=30.5, agreement_compensated=40.0)
    (project / "report").mkdir()
    (project / "report" / "results.json").write_text(json.dumps([vanilla, kdci]))
    assert run(["show"]) == 0
    printed = capsys.readouterr().out
    assert "wrn-16-1" in printed
    assert "8.5" in printed
    (project / "report" / "results.json").write_text("[")
    assert run(["show"]) == 3


def test_verify_ends_with_3_on_damage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["preset", "digits-smoke"])
    teacher = project / "artifacts" / "digits-smoke" / "teachers" / "wrn-10-1"
    teacher.mkdir(parents=True)
    (teacher / "card.json").write_text("{}")
    capsys.readouterr()
    assert run(["verify"]) == 3
    captured = capsys.readouterr()
    assert captured.out.count("not built: ") == 10
    (line,) = captured.err.splitlines()
    assert str(teacher) in line
    assert "teacher@wrn-10-1" in line


def test_clean_says_what_it_removes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["preset", "digits-smoke"])
    folder = project / ".kdci" / "work" / "teacher@wrn-10-1" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "checkpoint").write_bytes(b"x" * 1234)
    capsys.readouterr()
    assert run(["clean", "--dry-run"]) == 0
    assert "would remove 1 folders, 1,234 bytes" in capsys.readouterr().out
    assert folder.is_dir()
    assert run(["clean"]) == 0
    assert f"removed {folder.relative_to(project)}: 1,234 bytes" in capsys.readouterr().out
    assert not folder.exists()


def test_sync_tells_what_it_did(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import tracking

    seen = []

    def sync(layout: object, params: object) -> tracking.SyncSummary:
        seen.append((layout, params))
        return tracking.SyncSummary("digits-smoke", 3, 40, 0, 8, ("a.json is damaged",))

    def follow(layout: object, params: object, *, on_pass: object) -> None:
        assert callable(on_pass)
        on_pass(sync(layout, params))

    monkeypatch.setattr(tracking, "sync", sync)
    monkeypatch.setattr(tracking, "follow", follow)
    run(["preset", "digits-smoke"])
    capsys.readouterr()
    for arguments in (["sync"], ["sync", "--follow"]):
        assert run(arguments) == 0
        captured = capsys.readouterr()
        assert "3 runs and 40 points added" in captured.out
        assert captured.err == "kdci: warning: a.json is damaged\n"
    assert len(seen) == 2


def test_debug_shows_a_traceback(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "show"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-1].startswith("kdci: error: ")


def test_an_unwritable_place_ends_with_4(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").mkdir()
    assert run(["preset", "digits", "--force"]) == 4
    assert "params.yaml" in only_error(capsys)
