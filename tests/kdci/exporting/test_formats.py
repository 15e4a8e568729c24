from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.errors import CombinedUserError
from kdci.exporting.formats import ONNX, PT2, require_packages
from kdci.exporting.graph import trace
from kdci.models import BACKBONES
from kdci.models.students import Student
from tests.kdci.exporting._experiment import compensation, facts, network, student
from tests.project_code import ROOT


def images(size: int) -> Tensor:
    return torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(size))


@pytest.mark.slow
@pytest.mark.parametrize("which", [PT2, ONNX], ids=lambda each: each.name)
def test_what_is_read_again_answers_as_the_student(which: Any, tmp_path: Path) -> None:
    for package in which.packages:
        pytest.importorskip(package)
    phi = compensation(fusion="residual", num_prototypes=100)
    model = student(phi, "compensated")
    file = tmp_path / which.place
    recorded = which.write(trace(model, facts(phi), subject="it"), file)
    assert all(recorded.values())
    assert [path.name for path in tmp_path.iterdir()] == [which.place]  # no weights beside it
    loaded = which.load(file)
    for size in (1, 7, 50):
        with torch.no_grad():
            assert (loaded(images(size)) - model(images(size))).abs().max() < 1e-4
    assert str(ROOT).encode() not in file.read_bytes()


def test_onnx_file_is_a_model_with_named_ends_and_a_free_batch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    file = tmp_path / "model.onnx"
    recorded = ONNX.write(trace(student(), facts(None), subject="it"), file)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, answer.name) == ("images", "logits")
    dims = given.type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" == answer.type.tensor_type.shape.dim[0].dim_param
    assert [dim.dim_value for dim in dims[1:]] == [1, 16, 16]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    (opset,) = [each.version for each in model.opset_import if each.domain == ""]
    assert recorded["opset"] == opset >= 18
    assert not any(node.metadata_props for node in model.graph.node)


def test_a_missing_package_is_one_line_that_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    require_packages([PT2])
    with pytest.raises(CombinedUserError) as caught:
        require_packages([PT2, ONNX])
    (line,) = caught.value.lines()
    assert line == (
        "kdci: error: --formats: onnx needs onnx and onnxscript and onnxruntime "
        "(pip install 'kdci[export]', or leave onnx out)"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_an_onnx_model(name: str, tmp_path: Path) -> None:
    for package in ONNX.packages:
        pytest.importorskip(package)
    model = Student(network(name), None, deploy="backbone").eval()
    ONNX.write(trace(model, facts(None), subject=name), tmp_path / "model.onnx")
    loaded = ONNX.load(tmp_path / "model.onnx")
    for size in (1, 7):
        with torch.no_grad():
            assert (loaded(images(size)) - model(images(size))).abs().max() < 1e-4
