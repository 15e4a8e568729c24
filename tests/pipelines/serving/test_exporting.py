"""`kdci export`: which student is meant, what is told, and that MLflow serves what was written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from kdci.config.params_file import load_params
from kdci.errors import UserError
from kdci.models.students import load_student
from kdci.store.artifacts import open_artifact
from kdci.store.layout import Cell
from pipelines.cli import run
from pipelines.serving.exporting import choose, chosen_formats
from tests.conftest import Project
from tests.project_code import ROOT

WRN = "wrn-10-1"
NO_AXES: dict[str, str | int | None] = {}
ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
Kdci = Callable[..., int]


@pytest.fixture
def kdci(built: Project, monkeypatch: pytest.MonkeyPatch) -> Kdci:
    """Run a command line in the built project."""
    monkeypatch.chdir(built.root)
    monkeypatch.setattr("kdci.exporting.footprint.MOST_ROUNDS", 1)
    return lambda *arguments: run(["export", *arguments])


def chosen(project: Project, what: str | None, **axes: str | int) -> Cell:
    return choose(project.params, project.layout, what, axes)[1]


class TestChoice:
    @pytest.mark.parametrize(
        "what",
        [
            f"{WRN}/{WRN}/fast/kdci/pool0-seed0",
            "fast/kdci/pool0-seed0",
            "fast/kdci",
            f"{WRN}/fast/kdci/",
        ],
    )
    def test_by_name_or_by_parts_of_it(self, what: str, built: Project) -> None:
        assert chosen(built, what) == built.cell("kdci", "fast")

    def test_by_axes(self, built: Project) -> None:
        assert chosen(built, None, method="dfnd", variant="vanilla") == built.cell(
            "vanilla", "dfnd"
        )
        assert chosen(built, "kdci", method="fast", seed=0) == built.cell("kdci", "fast")

    def test_by_folder(self, built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        cell = built.cell("kdci", "fast")
        folder = built.layout.student(cell)
        found = choose(None, None, str(folder), NO_AXES)
        assert found == (folder, cell)
        monkeypatch.chdir(folder.parent)
        assert choose(None, None, folder.name, NO_AXES)[1] == cell
        with pytest.raises(UserError, match="--seed: does not go with a folder"):
            choose(None, None, str(folder), {"seed": 0})

    def test_the_only_one_there_is(self, built: Project) -> None:
        cell = built.cell("kdci", "dfnd")
        for other in ("dfnd/vanilla", "fast"):
            shutil.rmtree(built.root / f"artifacts/digits-smoke/students/{WRN}/{WRN}/{other}")
        assert chosen(built, None) == cell

    def test_several_are_listed_with_the_ways_to_choose(self, built: Project) -> None:
        with pytest.raises(UserError) as caught:
            chosen(built, None)
        (line,) = caught.value.lines()
        assert line.startswith("kdci: error: kdci export: 4 students are there: ")
        assert f"{WRN}/{WRN}/dfnd/kdci/pool0-seed0" in line and "--method, --variant" in line
        with pytest.raises(UserError, match="fast: 2 students are there"):
            chosen(built, "fast")

    @pytest.mark.parametrize("what", ["fasd", "kdci/fast", "fast/kdci/pool0-seed9", "artifacts"])
    def test_none_is_meant(self, what: str, built: Project) -> None:
        with pytest.raises(UserError, match="is no student of params.yaml") as caught:
            chosen(built, what)
        assert f"{WRN}/{WRN}/fast/vanilla/pool0-seed0" in caught.value.fix

    def test_not_distilled_yet(self, fresh: Project) -> None:
        with pytest.raises(UserError, match="not distilled yet: .*fast/kdci.*`dvc repro`"):
            chosen(fresh, "fast/kdci")

    def test_outside_of_a_project(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run(["export", "fast/kdci"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path}: neither it nor a folder above holds params.yaml" in line


class TestFormats:
    def test_each_is_written_once_in_the_order_that_is_asked_for(self) -> None:
        assert [each.name for each in chosen_formats("mlflow, pt2,mlflow")] == ["mlflow", "pt2"]

    def test_unknown(self) -> None:
        with pytest.raises(UserError, match=r"unknown format 'tflite' \(of pt2,onnx,mlflow\)"):
            chosen_formats("pt2,tflite")

    def test_without_the_extra_the_others_are_left(
        self,
        kdci: Kdci,
        built: Project,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        from importlib import util

        find = util.find_spec
        monkeypatch.setattr(
            util, "find_spec", lambda name, *more: None if name == "onnx" else find(name, *more)
        )
        assert kdci("fast/kdci") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--formats: onnx needs onnx (pip install 'kdci[export]'" in line
        assert not (built.root / "exports").exists()
        assert kdci("fast/kdci", "--formats", "pt2") == 0


class TestCommand:
    def test_writes_to_exports_what_evaluate_deploys(
        self, kdci: Kdci, built: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        built.edit(evaluate__deploy="compensated")
        assert kdci("fast/kdci", "--formats", "pt2", "--data-license", "CC0\n1.0") == 0
        told = capsys.readouterr()
        cell = built.cell("kdci", "fast")
        folder = built.root / "exports" / cell.name
        assert told.err == ""
        first, second, *table = told.out.splitlines()
        assert first == f"{cell.name} (compensated) is in exports/{cell.name}"
        assert second.startswith("pt2: model.pt2, at most ")
        assert [line.split()[0] for line in table[1:3]] == ["teacher", "student"]
        facts = json.loads((folder / "export.json").read_text())
        assert (facts["deploy"], facts["data_license"]) == ("compensated", "CC0 1.0")
        row = next(
            row
            for row in json.loads(
                (built.layout.evaluation(WRN, WRN, "fast") / "cells.json").read_text()
            )
            if row["variant"] == "kdci"
        )
        assert facts["accuracy"] == row["accuracy_compensated"]
        assert facts["num_test_images"] == 899
        roles = {"student", "teacher", "pool", "dictionary", "evaluation"}
        assert all(facts["artifacts"][role]["card_sha256"] for role in roles)

        # a plain student has no phi: the same params mean its backbone
        assert kdci("fast/vanilla", "--formats", "pt2") == 0
        assert f"{WRN}/fast/vanilla/pool0-seed0 (backbone) is in" in capsys.readouterr().out
        # unless it is asked for
        assert kdci("fast/vanilla", "--deploy", "compensated", "--force") == 2
        assert "vanilla has no compensation to deploy" in capsys.readouterr().err

    def test_to_another_folder_once(
        self, kdci: Kdci, built: Project, capsys: pytest.CaptureFixture[str]
    ) -> None:
        to = ["fast/kdci", "--formats", "pt2", "--to", "elsewhere"]
        assert kdci(*to) == 0
        assert open_artifact(built.root / "elsewhere", kind="export").card["facts"]
        capsys.readouterr()
        assert kdci(*to) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "elsewhere: is there already (give --force to replace it, or --to)" in line
        assert kdci(*to, "--force", "--deploy", "compensated") == 0

    def test_a_students_folder_needs_no_project(
        self, built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kdci.exporting.footprint.MOST_ROUNDS", 1)
        cell = built.cell("kdci", "fast")
        (tmp_path / "away").mkdir()
        shutil.copytree(built.layout.student(cell), tmp_path / "away" / "taken")
        monkeypatch.chdir(tmp_path / "away")
        assert run(["export", "taken", "--formats", "pt2"]) == 0
        facts = json.loads(Path("exports", cell.name, "export.json").read_text())
        assert facts["deploy"] == "backbone" and facts["accuracy"] is None
        assert set(facts["footprint"]["sizes"]) == {"student"}

    def test_help_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from pipelines.cli import run; assert run(['export', '--help']) == 0; "
            "sys.exit([m for m in ('torch', 'mlflow', 'onnx', 'numpy') if m in sys.modules] or 0)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


# -- MLflow ----------------------------------------------------------------------------------------


def eager(project: Project, deploy: str) -> Any:
    return load_student(project.layout.student(project.cell("kdci", "fast")), deploy=deploy)


def images(size: int) -> torch.Tensor:
    return torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(size))


@pytest.mark.slow
def test_mlflow_model_answers_as_the_student_and_tells_of_no_folder(
    kdci: Kdci, built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    assert kdci("fast/kdci", "--formats", "mlflow", "--deploy", "compensated", "--to", "out") == 0
    model = mlflow.pyfunc.load_model("out/mlflow")
    student = eager(built, "compensated")
    for size in (1, 7, 1100):  # more than phi takes at a time while training
        with torch.no_grad():
            expected = student(images(size))
        found = torch.from_numpy(model.predict(images(size).numpy()))
        assert (found - expected).abs().max() < 1e-4
    files = [file for file in Path("out").rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in (".pkl", ".pth", ".pt", ".bin")]
    for file in files:
        content = file.read_bytes()
        assert str(built.root).encode() not in content and str(ROOT).encode() not in content
    code = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.chdir("out")
    exec(compile(code[0], "README.md", "exec"), names)
    with torch.no_grad():
        expected = student(torch.from_numpy(names["images"]))
    assert abs(torch.from_numpy(names["logits"]) - expected).max() < 1e-4
    assert not Path("mlruns").exists() and not Path("mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.skipif(not ONNX, reason="needs the packages of the extra `export`")
def test_every_block_of_a_whole_card_runs(
    kdci: Kdci, built: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kdci("fast/kdci", "--to", "out") == 0
    assert capsys.readouterr().err == ""  # no warnings of the exporters
    blocks = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    student = eager(built, "backbone")
    monkeypatch.chdir("out")
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), names)
        with torch.no_grad():
            expected = student(torch.as_tensor(names["images"]))
        assert (torch.as_tensor(names["logits"]) - expected).abs().max() < 1e-4


@contextmanager
def served(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    """Serve a model until the block ends."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "no server"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1):
                    break
            except OSError:
                time.sleep(0.3)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(port: int, batch: torch.Tensor) -> torch.Tensor:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps({"inputs": batch.tolist()}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return torch.tensor(json.load(answer)["predictions"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_predictions_are_the_students(
    kdci: Kdci, built: Project, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of the card, but for the port; then the registry's version of the student."""
    assert kdci("fast/kdci", "--formats", "mlflow", "--to", "out") == 0
    serve, request = re.findall(r"```sh\n(.*?)\n```", Path("out/README.md").read_text(), re.DOTALL)
    student, port = eager(built, "backbone"), free_port()
    monkeypatch.chdir("out")
    with served(serve.replace("5001", str(port)).split(), port, environment):
        for size in (1, 7):
            with torch.no_grad():
                assert (ask(port, images(size)) - student(images(size))).abs().max() < 1e-4
        curl = ["sh", "-c", request.replace("5001", str(port))]
        done = subprocess.run(curl, capture_output=True, check=True, text=True, timeout=60)
        with torch.no_grad():
            expected = student(torch.full((2, 1, 16, 16), 0.5))
        assert (torch.tensor(json.loads(done.stdout)["predictions"]) - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_registered_student_is_served_too(
    built: Project,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipelines import tracking

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.sync(built.layout, load_params(built.root / "params.yaml"))
    name, port = f"models:/kdci-digits-smoke-{WRN}-{WRN}-fast@kdci", free_port()
    command = ["mlflow", "models", "serve", "-m", name, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with served(command, port, {**environment, "MLFLOW_TRACKING_URI": uri}), torch.no_grad():
        student = eager(built, "backbone")
        assert (ask(port, images(7)) - student(images(7))).abs().max() < 1e-4


# -- docs/export.md --------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^kdci export(.*?)(?:#.*)?$", PAGE, re.MULTILINE)


def test_options_of_the_page_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "--help"]) == 0
    told = capsys.readouterr().out
    options = set(
        re.findall(r"(?<!-)--[a-z][a-z-]*", "\n".join(COMMANDS) + PAGE.split("## Serving")[0])
    )
    assert len(COMMANDS) == 8 and len(options) > 6
    assert [option for option in options if f"{option} " not in told] == []


@pytest.mark.slow
@pytest.mark.skipif(not ONNX, reason="needs the packages of the extra `export`")
def test_example_of_the_page(
    kdci: Kdci, built: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is told is what the page shows, but for numbers that a machine decides."""
    first, second = COMMANDS[-2:]
    for command in (first, second):
        assert kdci(*command.split()) == 0
        told = capsys.readouterr().out.splitlines()
        shown = [line for line in PAGE.splitlines() if line.startswith(told[0].split(" (")[0])]
        if command is first:
            assert told[0] in shown
        for line in told[5:7]:  # parameters and bytes
            assert any(row.startswith(line[:45]) for row in PAGE.splitlines()), line
    card = (built.root / "exports" / built.cell("kdci", "fast").name / "README.md").read_text()
    results = without_numbers(card.partition("## Results\n")[2].partition("\n\n")[0])
    assert results in without_numbers(PAGE)


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d.,]*", "#", text)
