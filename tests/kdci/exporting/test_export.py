from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.errors import IntegrityError, NumericError, StorageError, UserError
from kdci.exporting.export import export_student
from kdci.exporting.formats import PT2, Format, Model
from kdci.exporting.graph import ExportError
from kdci.exporting.model_card import model_card
from kdci.exporting.release import Release, Terms
from kdci.models.pretrained import build_network
from kdci.models.students import load_student
from kdci.store.artifacts import open_artifact, save_tensors
from tests.kdci.exporting._experiment import SPEC, Experiment, compensation, network
from tests.project_code import ROOT

Export = Callable[..., Release]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdci.exporting.footprint.MOST_ROUNDS", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "a" / "b"


@pytest.fixture
def export(experiment: Experiment, folder: Path) -> Export:
    def run(**changes: Any) -> Release:
        settings: dict[str, Any] = {"deploy": "backbone", "formats": [PT2]}
        return export_student(experiment.student, folder, **(settings | changes))

    return run


def off_by(difference: float) -> Format:
    """Return a format whose model errs by so much, on a batch of seven alone."""

    def load(path: Path) -> Model:
        model = PT2.load(path)

        def run(images: Tensor) -> Tensor:
            return model(images) + (difference if len(images) == 7 else 0)

        return run

    return replace(PT2, load=load)


def nothing_was_written(folder: Path) -> bool:
    return not (folder.parents[1]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("deploy", ["backbone", "compensated"])
def test_folder_holds_graph_weights_and_card(
    deploy: str, experiment: Experiment, export: Export, folder: Path
) -> None:
    release = export(deploy=deploy, terms=Terms(license="mit"))
    names = {file.name for file in folder.iterdir()}
    assert names == {"model.pt2", "weights.safetensors", "README.md", "export.json", "card.json"}
    student = load_student(experiment.student, deploy=deploy)
    model = torch.export.load(folder / "model.pt2").module()
    images = torch.rand(7, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(images) - student(images)).abs().max() < 1e-4
    facts = json.loads((folder / "export.json").read_text())
    assert facts["deploy"] == deploy == release.deploy
    assert facts["formats"]["pt2"]["parity"]["max_abs_difference"] <= 1e-4
    assert len(facts["formats"]["pt2"]["parity"]["by_input"]) == 6
    sizes = facts["footprint"]["sizes"]
    assert sizes["teacher"]["parameters"] == sum(
        p.numel() for p in network("wrn-16-1").parameters()
    )
    own = sum(p.numel() for p in student.backbone.parameters())
    phi = sum(p.numel() for p in compensation().parameters())
    assert sizes["student"]["parameters"] == own + (phi if deploy == "compensated" else 0)
    assert "\nlicense: mit\n" in (folder / "README.md").read_text()


def test_hashes_of_the_files_are_their_own(export: Export, folder: Path) -> None:
    export()
    card = open_artifact(folder, kind="export").card  # hashes every file again
    stated = json.loads((folder / "export.json").read_text())["files"]
    assert set(stated) == {"model.pt2", "weights.safetensors", "README.md"}
    assert all(card["files"][name] == entry for name, entry in stated.items())
    assert (folder.stat().st_mode & 0o777) == 0o755


def test_no_file_tells_of_this_machine(export: Export, folder: Path, tmp_path: Path) -> None:
    export(deploy="compensated")
    for file in folder.iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content and b"/home/me" not in content
        assert str(ROOT).encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("deploy", ["backbone", "compensated"])
@pytest.mark.parametrize("fusion", ["identity", "linear"])
def test_code_of_the_card_gives_the_students_logits(
    deploy: str,
    fusion: Any,
    experiment: Experiment,
    export: Export,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment.write_student(compensation(fusion=fusion))
    export(deploy=deploy)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    student = load_student(experiment.student, deploy=deploy)
    monkeypatch.chdir(folder)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), names)
        with torch.no_grad():
            expected = student(names["images"])
            assert (names["logits"] - expected).abs().max() < 1e-4


def test_what_is_there_is_replaced_on_request_alone(export: Export, folder: Path) -> None:
    export()
    before = (folder / "card.json").read_bytes()
    with pytest.raises(UserError, match="is there already .*--force"):
        export(deploy="compensated")
    assert (folder / "card.json").read_bytes() == before
    export(deploy="compensated", force=True)
    assert json.loads((folder / "export.json").read_text())["deploy"] == "compensated"
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("what", ["folder", "file", "student", "damaged"])
def test_what_is_no_export_is_never_replaced(
    what: str, force: bool, experiment: Experiment, folder: Path
) -> None:
    place = folder
    if what == "student":
        place = experiment.student
    elif what == "file":
        folder.parent.mkdir(parents=True)
        folder.write_text("mine")
    else:
        folder.mkdir(parents=True)
        (folder / ("card.json" if what == "damaged" else "mine.txt")).write_text("{}")
    with pytest.raises(UserError, match="is there and is no whole export .*--to"):
        export_student(experiment.student, place, deploy="backbone", formats=[PT2], force=force)
    assert place.exists() and open_artifact(experiment.student, kind="student")


def test_an_empty_folder_is_filled(export: Export, folder: Path) -> None:
    folder.mkdir(parents=True)
    export()
    assert (folder / "model.pt2").is_file()


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_a_graph_that_answers_otherwise_is_not_written(
    difference: float, export: Export, folder: Path
) -> None:
    with pytest.raises(IntegrityError, match="as pt2: differs from the student by .*batch 7"):
        export(formats=[off_by(difference)])
    assert nothing_was_written(folder)


def test_a_difference_within_the_tolerance_is_recorded(export: Export, folder: Path) -> None:
    release = export(formats=[off_by(5e-5)])
    found = release.formats["pt2"]["parity"]["by_input"]
    assert found["uniform, batch 7"] == pytest.approx(5e-5, abs=5e-6)
    assert found["uniform, batch 1"] < 1e-6


def test_a_weight_that_is_no_number_is_refused(
    experiment: Experiment, export: Export, folder: Path
) -> None:
    phi = compensation()
    with torch.no_grad():
        phi.w_t.weight[0, 0] = float("nan")
    experiment.write_student(phi)
    with pytest.raises(NumericError, match="w_t.weight is not finite"):
        export(deploy="compensated")
    assert nothing_was_written(folder)


def test_random_lambda_is_exported_as_its_backbone_alone(
    experiment: Experiment, export: Export, folder: Path
) -> None:
    experiment.write_student(compensation(weights="random"))
    with pytest.raises(UserError, match="drawn afresh .*--deploy backbone"):
        export(deploy="compensated")
    assert nothing_was_written(folder)
    assert export().deploy == "backbone"


def test_damaged_student_is_refused(experiment: Experiment, export: Export, folder: Path) -> None:
    file = experiment.student / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        export()
    assert nothing_was_written(folder)


def test_teacher_that_is_gone_leaves_the_student_alone(
    experiment: Experiment, export: Export, folder: Path
) -> None:
    experiment.parents["teacher"] = "another"
    experiment.write_student(compensation())
    assert set(export().footprint.sizes) == {"student"}
    assert "The teacher is not at hand" in (folder / "README.md").read_text()


def test_a_place_that_can_not_be_written(export: Export, folder: Path) -> None:
    folder.parents[1].mkdir()
    folder.parent.write_text("a file")
    with pytest.raises(StorageError):
        export()
    assert folder.parent.read_text() == "a file"


def test_a_writer_that_fails_is_one_line_and_leaves_nothing(export: Export, folder: Path) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError("no kernel\nfor this")

    with pytest.raises(ExportError, match="as pt2: can not be exported: no kernel$"):
        export(formats=[replace(PT2, write=fail)])
    assert nothing_was_written(folder)


def test_what_a_killed_export_left_is_removed(export: Export, folder: Path) -> None:
    left = folder.parent / f".{folder.name}.abc123.tmp"
    left.mkdir(parents=True)
    (left / "model.pt2").write_bytes(b"half")
    other = folder.parent / ".another.abc123.tmp"
    other.mkdir()
    export()
    assert sorted(place.name for place in folder.parent.iterdir()) == [other.name, folder.name]


@pytest.mark.parametrize("name", ["torchvision-mnasnet0_5", "torchvision-vit_b_32"])
@pytest.mark.slow
def test_code_of_the_card_loads_networks_of_torchvision(
    name: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One asks for the version of a state dict, the other for the image size."""
    torch.manual_seed(0)
    spec = replace(SPEC, image_size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    monkeypatch.setattr("tests.kdci.exporting._experiment.network", lambda _: made)
    made = build_network(name, spec, seed=0)
    facts = {key: getattr(spec, key) for key in ("image_size", "channels", "mean", "std")}
    experiment.write_student(None, student=name, **facts)
    card = model_card(experiment.release(formats={}))
    code = card.partition("```python\n")[2].partition("```")[0]
    folder = experiment.student.parent
    save_tensors(folder / "weights.safetensors", made.state_dict())
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    with torch.no_grad():
        expected = made.eval()(names["images"]).logits
    assert torch.allclose(names["logits"], expected, atol=1e-5)
