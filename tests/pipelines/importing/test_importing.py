"""`kdci import-teacher`: foreign checkpoints become teachers, or nothing at all."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import nn

from kdci.config.catalog import DATASETS
from kdci.config.data import Data, DataFacts
from kdci.config.params_file import load_params
from kdci.errors import KdciError
from kdci.intake import quarantine
from kdci.intake.reading import read_tensors
from kdci.models import build_backbone, build_pixel_model
from kdci.models.pretrained import load_teacher
from kdci.store.artifacts import open_artifact, save_tensors
from kdci.store.hashing import hash_file
from kdci.store.layout import Layout
from pipelines.cli import run
from pipelines.importing.check import check_teacher_artifact
from pipelines.importing.options import Options, folder_of
from pipelines.importing.report import in_yaml
from tests.project_code import ROOT

DATA = Path(os.environ.get("KDCI_TEST_DATA") or ROOT.parent / "shared/data")
CHECKPOINT = DATA.parent / "teachers/cifar10_wrn16_2.pth"
WRN = "wrn-10-1"
CUSTOM_DATA = ["--dataset", "custom", "--image-size", "16", "--mean", "0.5", "--std", "0.5"]


class Poison:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text(
        (ROOT / "pipelines/presets/digits-smoke.yaml").read_text(encoding="utf-8")
    )
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def digits_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(build_backbone(WRN, num_classes=10, channels=1).state_dict())


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in this very process: for what is not about the quarantine, which takes seconds."""

    def read(file: io.FileIO, outbox: Path, path: Path, *, key: str | None, sha256: str) -> int:
        report: dict[str, Any]
        try:
            reading = read_tensors(file.read(), path.name, key=key)
        except KdciError as error:
            report = {"error": type(error).__name__, "what": error.what, "fix": error.fix}
        else:
            save_tensors(outbox / "tensors.safetensors", reading.tensors)
            report = {
                "format": reading.format,
                "key": reading.key,
                "others": list(reading.others),
                "converted": reading.converted,
            }
        (outbox / "report.json").write_text(json.dumps(report))
        return 0

    monkeypatch.setattr(quarantine, "_run_child", read)


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def import_it(file: Path, *more: str, backbone: str = WRN, dataset: str = "digits") -> int:
    return run(["import-teacher", str(file), "--backbone", backbone, "--dataset", dataset, *more])


def refused(capsys: pytest.CaptureFixture[str], code: int, file: Path, *more: str, **kw) -> str:
    """Import, and require one line, the exit code, and that nothing was written."""
    before = tree(file.parent)
    assert import_it(file, *more, **kw) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("kdci: error: ") and "weights_only=False" not in line
    assert tree(file.parent) == before
    return line


class TestInQuarantine:
    @pytest.mark.slow
    def test_a_checkpoint_becomes_a_teacher(self, project, digits_state, capsys) -> None:
        file = project / "Mine-v1.pth.tar"
        wrapped = {f"module.{name}": value for name, value in digits_state.items()}
        torch.save({"epoch": 3, "state_dict": wrapped, "optimizer": {"lr": 0.1}}, file)
        assert import_it(file, "--sha256", hash_file(file)) == 0
        out, err = capsys.readouterr()
        artifact = open_artifact(project / "teachers/Mine-v1", kind="teacher")
        teacher = load_teacher(artifact, DATASETS["digits"])
        found = teacher.backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in digits_state.items())
        facts = artifact.facts
        assert facts["imported"] == {
            "file": "Mine-v1.pth.tar",
            "sha256": hash_file(file),
            "bytes": file.stat().st_size,
            "format": "torch",
            "key": "state_dict",
            "prefixes": ["module."],
            "renamed": 0,
            "converted": {},
            "num_batch_norm": 7,
            "had_running_stats": True,
        }
        assert (facts["backbone"], facts["stem"], facts["dataset"]) == (WRN, "cifar", "digits")
        assert (facts["num_classes"], facts["channels"], facts["image_size"]) == (10, 1, 16)
        assert (facts["num_steps"], facts["train_accuracy"]) == (0, None)
        assert f"accuracy: {facts['accuracy']:.2f} % of " in out
        assert f"content {artifact.content}" in out and hash_file(file) in out
        assert "never trained" in err and "at chance" in err  # it was not
        assert {line.partition(":")[0] for line in err.splitlines()} == {"kdci"}
        assert "teachers: [wrn-10-1]" in out and "artifact: teachers/Mine-v1" in out

    def test_poison(self, project, digits_state, capsys) -> None:
        file, canary = project / "x.pt", project.parent / "canary"
        torch.save({"state_dict": digits_state, "hook": Poison(canary)}, file)
        assert "posix.system" in refused(capsys, 3, file)
        assert not canary.exists()


@pytest.mark.usefixtures("at_once")
class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "code", "told"),
        [
            (lambda s: nn.Linear(2, 2), 3, "torch.nn.modules.linear.Linear"),
            (lambda s: s | {"fc.bias": s["fc.bias"] * float("nan")}, 3, "NaN"),
            (lambda s: {k: v for k, v in s.items() if "running" not in k}, 2, "no BatchNorm sta"),
            (lambda s: s | {"extra.weight": torch.zeros(2)}, 2, "1 unknown (extra.weight)"),
            (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, 2, "1 missing (fc.bias)"),
            (
                lambda s: s | {"fc.weight": torch.zeros(7, 64), "fc.bias": torch.zeros(7)},
                2,
                "has 7 classes (fc.weight), expected 10",
            ),
            (lambda s: s | {"fc.bias": torch.zeros(10, dtype=torch.int8)}, 2, "fc.bias is int8"),
            (lambda s: s | {"bn1.running_var": -s["bn1.running_var"]}, 3, "negative"),
            (lambda s: {"model": {"a": 1}}, 2, "holds no state dict: its keys are model"),
            (lambda s: s | {"fc.bias": s["fc.bias"] + 1e38, "bn1.bias": s["bn1.bias"] + 1e38}, 5,
             "not finite"),
        ],
    )  # fmt: skip
    def test_of_content(self, project, digits_state, capsys, change, code, told) -> None:
        file = project / "x.pt"
        torch.save(change(digits_state), file)
        line = refused(capsys, code, file)
        assert told in line and str(file) in line

    def test_of_another_backbone(self, project, digits_state, capsys) -> None:
        file = project / "x.safetensors"
        save_file(digits_state, file)
        assert "not those of wrn-16-1" in refused(capsys, 2, file, backbone="wrn-16-1")

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (["--backbone", "resnet-19"], "--backbone: unknown backbone 'resnet-19'"),
            (["--dataset", "cifar11"], "--dataset: unknown dataset"),
            (["--stem", "wide"], "--stem: unknown stem"),
            (["--sha256", "abc"], "--sha256: is no SHA-256"),
            (["--classes", "10"], "--classes: is a fact of custom data"),
            (["--classes", "0"], "--classes: is a fact of custom data"),
            (["--image-size", "0"], "--image-size: is a fact of custom data"),
            ([*CUSTOM_DATA, "--classes", "0"], "--classes: "),
            ([*CUSTOM_DATA, "--channels", "0"], "--channels: "),
            (["--class-names", ""], "--class-names: one of them is empty"),
            ([*CUSTOM_DATA, "--class-names", "a,,b"], "--class-names: one of them is empty"),
            (["--mean", "77.5"], "--mean: is 77.5, which is not within 0 to 1 (give it on"),
            (["--mean", "-0.1"], "--mean: is -0.1, which is not"),
            (["--mean", "nan"], "--mean: is nan, which is not"),
            (["--std", "58.395"], "--std: is 58.395, which is not"),
            ([*CUSTOM_DATA, "--mean", "123.675"], "divide by 255)"),
            (["--backbone", "torchvision-googlenet"], "--mean, --std: have to be stated for torch"),
            (["--backbone", "torchvision-inception_v3", "--mean", "0.5"], "(--mean 0.5 --std 0.5 "),
            (["--mean", "0.5,x"], "--mean: '0.5,x' is no list of numbers"),
            (["--mean", "0.5,0.5"], "--mean: needs 1 values"),
            (["--std", "0"], "--std: "),
            (["--std", "nan"], "--std: "),
            (["--dataset", "custom", "--image-size", "16"], "--mean, --std: custom data needs"),
            (["--to", "../-x"], "--to: '-x' is no name"),
            (["--to", "teachers/.."], "--to: '..' is no name"),
            (["--to", "a\x00b"], "null byte"),
            (["--key", "nowhere"], "no state dict under nowhere"),
        ],
    )
    def test_of_options(self, project, digits_state, capsys, more, told) -> None:
        file = project / "x.pt"
        torch.save(digits_state, file)
        assert told in refused(capsys, 2, file, *more)

    def test_of_another_hash(self, project, digits_state, capsys) -> None:
        file = project / "x.pt"
        torch.save(digits_state, file)
        assert "has SHA-256" in refused(capsys, 3, file, "--sha256", "0" * 64)

    def test_of_what_is_there_already(self, project, digits_state, capsys) -> None:
        file = project / "x.pt"
        torch.save(digits_state, file)
        (project / "teachers/x").mkdir(parents=True)
        (project / "teachers/x/notes.txt").write_text("mine")
        assert "is there already" in refused(capsys, 2, file)
        assert "there is no teacher here" in refused(capsys, 2, file, "--force")

    def test_of_a_disk_that_is_full(self, project, digits_state, capsys, monkeypatch) -> None:
        import errno

        import kdci.store.artifacts

        def full(path: Path, data: bytes) -> None:
            with kdci.store.artifacts.storage_errors(path, needed=len(data)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        file = project / "x.pt"
        torch.save(digits_state, file)
        (project / "teachers").mkdir()
        monkeypatch.setattr("kdci.store.artifacts.write_bytes", full)
        line = refused(capsys, 4, file, "--to", str(project / "teachers/y"))
        assert "No space left" in line


@pytest.mark.usefixtures("at_once")
class TestImported:
    def test_force_replaces_a_teacher(self, project, digits_state, capsys) -> None:
        file = project / "x.pt"
        torch.save(digits_state, file)
        assert import_it(file) == 0
        first = open_artifact(project / "teachers/x", kind="teacher").content
        torch.save({k: v + 1 for k, v in digits_state.items()}, file)
        capsys.readouterr()
        assert "is there already" in refused(capsys, 2, file)
        assert import_it(file, "--force") == 0
        assert open_artifact(project / "teachers/x", kind="teacher").content != first

    def test_same_file_same_content_in_any_format(self, project, digits_state) -> None:
        torch.save({"net": digits_state}, project / "x.pt")
        save_file(digits_state, project / "y.safetensors")
        assert import_it(project / "x.pt") == import_it(project / "y.safetensors") == 0
        one, other = (open_artifact(project / "teachers" / n, kind="teacher") for n in "xy")
        assert one.content == other.content
        assert other.facts["imported"]["format"] == "safetensors"

    def test_own_normalisation(self, project, digits_state, capsys) -> None:
        save_file(digits_state, project / "x.safetensors")
        assert import_it(project / "x.safetensors", "--mean", "0.5", "--std", "0.25") == 0
        facts = open_artifact(project / "teachers/x", kind="teacher").facts
        assert (facts["mean"], facts["std"]) == ([0.5], [0.25])
        assert "normalises digits otherwise" in capsys.readouterr().err

    def test_custom_data_without_data(self, project, capsys) -> None:
        """The lines printed are the block of params that adopts the teacher."""
        torch.manual_seed(0)
        spec = replace(DATASETS["cifar10"], num_classes=3, stated_names=("a", "b", "c"))
        model = build_pixel_model("vgg-11", spec).half()
        torch.save(model.state_dict(), project / "Pets.pt")
        facts = ["--image-size", "32", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]
        names = ["--class-names", "cat, dog: big,no"]
        code = import_it(project / "Pets.pt", *facts, *names, backbone="vgg-11", dataset="custom")
        assert code == 0
        out, _ = capsys.readouterr()
        assert "accuracy: not measured" in out and "of float16 made float32" in out
        assert "prefix backbone. taken off" in out
        stated = YAML(typ="safe", pure=True).load(out.partition("params.yaml:\n")[2])
        assert stated["data"]["facts"]["class_names"] == ["cat", "dog: big", "no"]
        yaml = YAML(typ="safe", pure=True)
        tree_of = yaml.load((project / "params.yaml").read_text())
        tree_of["grid"] |= stated["grid"]
        tree_of["data"] = stated["data"]
        tree_of["teacher"] |= stated["teacher"]
        tree_of["methods"]["dfnd"]["teacher_accuracy"] = 0.8  # nobody has measured it
        with (project / "params.yaml").open("w") as file:
            yaml.dump(tree_of, file)
        params = load_params(project / "params.yaml")
        assert params.data.spec.num_classes == 3 and params.data.test is None
        assert list(check_teacher_artifact(params, Layout(project, params.preset))) == []

    def test_class_names_in_another_order_are_not_adopted(self, project, capsys) -> None:
        """Nothing else would tell: shapes fit in any order."""
        torch.manual_seed(0)
        spec = replace(DATASETS["cifar10"], num_classes=3, stated_names=("a", "b", "c"))
        torch.save(build_pixel_model("vgg-11", spec).state_dict(), project / "Pets.pt")
        facts = ["--image-size", "32", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]
        more = [*facts, "--class-names", "cat,dog,hare"]
        assert import_it(project / "Pets.pt", *more, backbone="vgg-11", dataset="custom") == 0
        stated = YAML(typ="safe", pure=True).load(
            capsys.readouterr().out.partition("params.yaml:\n")[2]
        )
        params = load_params(project / "params.yaml")
        for names, told in (
            (["dog", "cat", "hare"], "calls class 0 'cat'"),
            ([], "states its class names"),
        ):
            block = {**stated["data"], "facts": {**stated["data"]["facts"], "class_names": names}}
            teacher = params.teacher.model_copy(update={"artifact": "teachers/Pets"})
            other = params.model_copy(
                update={
                    "data": Data.model_validate(block),
                    "teacher": teacher,
                    "grid": params.grid.model_copy(update={"teachers": ("vgg-11",)}),
                }
            )
            (problem,) = check_teacher_artifact(other, Layout(project, params.preset))
            assert told in str(problem) and problem.exit_code == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5"])
    def test_networks_of_torchvision(self, project, name) -> None:
        """Also those that ask for the version of a state dict, which safetensors do not keep."""
        network = torchvision.models.get_model(name, weights=None, num_classes=4)
        save_file(network.state_dict(), project / "x.safetensors")
        facts = ["--image-size", "32", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]
        backbone = f"torchvision-{name}"
        file = project / "x.safetensors"
        assert import_it(file, *facts, backbone=backbone, dataset="custom") == 0
        artifact = open_artifact(project / "teachers/x", kind="teacher")
        spec = DataFacts(num_classes=4, image_size=32, mean=(0.5,) * 3, std=(0.2,) * 3).spec
        found = load_teacher(artifact, spec).backbone.state_dict()
        state = network.state_dict()
        assert all(torch.equal(found[key], value) for key, value in state.items())

    def test_others_in_the_file_are_told(self, project, digits_state, capsys) -> None:
        torch.save({"ema": digits_state, "model": digits_state}, project / "x.pt")
        assert import_it(project / "x.pt") == 0
        assert "also holds ema" in capsys.readouterr().err

    def test_outside_of_a_project(self, tmp_path, digits_state, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        save_file(digits_state, tmp_path / "x.safetensors")
        assert import_it(tmp_path / "x.safetensors") == 0
        assert open_artifact(tmp_path / "teachers/x", kind="teacher")


@pytest.mark.parametrize(
    "path", ["teachers/x", "../data/cifar-10", "~", "a: b/c", "x #y", "- x", "null", "1e3", "Ü/ö"]
)
def test_paths_are_read_as_they_were_given(path: str) -> None:
    assert YAML(typ="safe", pure=True).load(f"  path: {in_yaml(path)}\n") == {"path": path}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("resnet18-f37072fd.pth", "resnet18-f37072fd"),
        ("a/model_best.pth.tar", "model_best"),
        ("w.SAFETENSORS", "w"),
        ("v1.5.ckpt", "v1.5"),
    ],
)
def test_default_folder(tmp_path: Path, file: str, name: str) -> None:
    options = Options(Path(file), WRN, "digits", tmp_path)
    assert folder_of(options) == tmp_path / "teachers" / name


class TestCheck:
    """What `kdci check` tells of teacher.artifact."""

    @pytest.fixture
    def adopting(self, built, tmp_path):
        (tmp_path / "built/teachers").mkdir()
        built.layout.teacher(WRN).rename(tmp_path / "built/teachers/mine")
        return built.edit(teacher__artifact="teachers/mine")

    def problems(self, project) -> list[str]:
        found = check_teacher_artifact(project.params, project.layout)
        return [line for problem in found for line in problem.lines()]

    def test_nothing_to_adopt(self, built) -> None:
        assert self.problems(built) == []

    def test_a_good_one(self, adopting) -> None:
        assert self.problems(adopting) == []

    def test_one_for_two_backbones(self, adopting) -> None:
        adopting.edit(grid__teachers=[WRN, "wrn-16-1"])
        (line,) = self.problems(adopting)
        assert "teachers/mine is a wrn-10-1, the grid asks for wrn-16-1" in line

    def test_missing_and_damaged(self, adopting) -> None:
        file = adopting.root / "teachers/mine/model.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        (problem,) = check_teacher_artifact(adopting.params, adopting.layout)
        assert problem.exit_code == 3 and "model.safetensors" in str(problem)
        adopting.edit(teacher__artifact="teachers/none")
        (line,) = self.problems(adopting)
        assert line.startswith("kdci: error: teacher.artifact: teachers/none: there is no teacher")

    def test_dfnd_without_accuracy(self, project, digits_state, at_once) -> None:
        save_file(digits_state, project / "x.safetensors")
        assert import_it(project / "x.safetensors", dataset="digits") == 0
        params = load_params(project / "params.yaml")
        silent = params.model_copy(
            update={
                "teacher": params.teacher.model_copy(update={"artifact": "teachers/x"}),
                "data": params.data.model_copy(update={"test": None}),
                "grid": params.grid.model_copy(update={"methods": ("dfnd",)}),
            }
        )
        layout = Layout(project, params.preset)
        assert list(check_teacher_artifact(silent, layout)) == []  # measured: digits are bundled
        self.forget(project / "teachers/x")
        (problem,) = check_teacher_artifact(silent, layout)
        assert problem.subject == "methods.dfnd.teacher_accuracy"

    def forget(self, folder: Path) -> None:
        from kdci.store.artifacts import new_artifact

        artifact = open_artifact(folder, kind="teacher")
        tensors = artifact.tensors("model.safetensors")
        card = {"params": artifact.card["params"], "facts": {**artifact.facts, "accuracy": None}}
        with new_artifact(folder, kind="teacher", card=card) as draft:
            draft.save_tensors("model.safetensors", tensors)


@pytest.mark.slow
def test_the_given_teacher_reaches_what_its_readme_says(project, capsys) -> None:
    for path in (CHECKPOINT, DATA / "cifar10"):
        if not path.exists():
            pytest.skip(f"needs {path.name}; set KDCI_TEST_DATA, teachers/ lies beside it")
    code = import_it(
        CHECKPOINT, "--data", str(DATA / "cifar10"), backbone="wrn-16-2", dataset="cifar10"
    )
    out, err = capsys.readouterr()
    assert code == 0 and err == ""
    facts = open_artifact(project / "teachers/cifar10_wrn16_2", kind="teacher").facts
    assert facts["accuracy"] == pytest.approx(89.19, abs=0.1)
    assert "of 10,000 test images" in out
