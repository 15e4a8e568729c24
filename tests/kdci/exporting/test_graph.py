from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.deconfounding.compensation import Compensation
from kdci.errors import UserError
from kdci.exporting.graph import ExportError, FoldedCompensation, exporting, trace
from kdci.models import BACKBONES
from kdci.models.students import Student
from tests.kdci.exporting._experiment import compensation, facts, network, student
from tests.project_code import ROOT


def logits(size: int = 7) -> Tensor:
    return 4 * torch.randn(size, 10, generator=torch.Generator().manual_seed(5))


def images(size: int) -> Tensor:
    return torch.rand(size, 1, 16, 16, generator=torch.Generator().manual_seed(size))


class TestFoldedCompensation:
    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    @pytest.mark.parametrize("proportions", ["cluster", "none", "centred"])
    def test_answers_as_the_module(self, fusion: Any, proportions: Any) -> None:
        phi = compensation(fusion=fusion, proportions=proportions)
        with torch.no_grad():
            assert torch.allclose(FoldedCompensation(phi)(logits()), phi(logits()), atol=1e-5)
            assert not torch.allclose(phi(logits()), logits(), atol=0.1)  # it does something

    def test_prototypes_need_not_be_logits(self) -> None:
        phi = compensation(num_prototypes=6, dimension=23, fusion="residual", prototypes="random")
        with torch.no_grad():
            assert torch.allclose(FoldedCompensation(phi)(logits()), phi(logits()), atol=1e-5)

    def test_is_the_equation(self) -> None:
        """lambda_i = softmax_i(W_t tanh(W_q f + W_k z_i)); f + scale sum_i lambda_i z_i P(z_i)."""
        phi = compensation(num_prototypes=3)
        f = logits(1)[0]
        with torch.no_grad():
            z, p = phi.prototypes_ND, phi.factors_N
            scores = [
                sum(
                    float(phi.w_t.weight[0, a])
                    * float(torch.tanh(phi.w_q.weight[a] @ f + phi.w_k.weight[a] @ z[i]))
                    for a in range(64)
                )
                for i in range(3)
            ]
            weights = torch.tensor(scores).softmax(dim=0)
            expected = f + 3 * sum(weights[i] * p[i] * z[i] for i in range(3))
            found = FoldedCompensation(phi)(f[None])[0]
        assert torch.allclose(found, expected, atol=1e-4)


class TestTrace:
    @pytest.mark.parametrize("deploy", ["backbone", "compensated"])
    def test_graph_answers_as_the_student(self, deploy: str) -> None:
        phi = compensation(fusion="residual")
        model = student(phi, deploy)
        graph = trace(model, facts(phi), subject="it")
        assert (graph.shape, graph.num_classes) == ((1, 16, 16), 10)
        module = graph.program.module()
        for size in (1, 2, 7):
            with torch.no_grad():
                expected = model(images(size))
            assert (module(images(size)) - expected).abs().max() < 1e-5
        other = {"backbone": "compensated", "compensated": "backbone"}[deploy]
        model.deploy = other
        assert (module(images(7)) - model(images(7))).abs().max() > 0.1  # the two forms differ

    def test_batch_has_no_bound_however_large_the_dictionary_is(self) -> None:
        """In training 4096 prototypes make blocks of one image, whose number a trace would fix."""
        phi = compensation(num_prototypes=4096)
        module = trace(student(phi, "compensated"), facts(phi), subject="it").program.module()
        assert module(images(9)).shape == (9, 10)

    def test_normalisation_is_inside(self) -> None:
        model = student()
        module = trace(model, facts(None), subject="it").program.module()
        normalised = (images(3) - 0.3039) / 0.3179
        with torch.no_grad():
            expected = model.backbone.backbone(normalised).logits
        assert torch.allclose(module(images(3)), expected, atol=1e-5)

    def test_answer_carries_no_gradient(self) -> None:
        module = trace(student(), facts(None), subject="it").program.module()
        assert module(images(2)).numpy().shape == (2, 10)

    def test_file_tells_of_no_folder_of_this_machine(self, tmp_path: Path) -> None:
        phi = compensation()
        graph = trace(student(phi, "compensated"), facts(phi), subject="it")
        torch.export.save(graph.program, tmp_path / "model.pt2")
        with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
        assert b"aten.conv2d" in content
        assert str(ROOT).encode() not in content and b".py" not in content

    def test_student_trained_in_bf16_is_exported_in_fp32(self) -> None:
        """Its artifact is loaded without autocast; a graph of one with it would differ."""
        model = student()
        model.backbone.autocast_dtype = torch.bfloat16
        rounded = trace(model, facts(None), subject="it").program.module()(images(7))
        exact = trace(student(), facts(None), subject="it").program.module()(images(7))
        assert (rounded - exact).abs().max() > 1e-4

    def test_random_lambda_has_no_graph(self) -> None:
        phi = compensation(weights="random")
        with pytest.raises(UserError, match="drawn afresh .*use --deploy backbone"):
            trace(student(phi, "compensated"), facts(phi), subject="it")
        assert trace(student(phi), facts(phi), subject="it").program is not None

    def test_vanilla_has_nothing_to_compensate_with(self) -> None:
        with pytest.raises(UserError, match="it: kdci has no compensation to deploy"):
            trace(student(None, "compensated"), facts(None), subject="it")

    def test_student_that_branches_on_its_data_is_refused_in_one_line(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        model = student()
        backbone: Any = model.backbone.backbone
        backbone.conv1 = nn.Sequential(Branching(), backbone.conv1)
        assert model(images(2)).shape == (2, 10)
        with pytest.raises(ExportError, match="some/student: can not be exported: ") as caught:
            trace(model, facts(None), subject="some/student")
        assert len(caught.value.lines()) == 1 and caught.value.exit_code == 2

    def test_full_disk_is_no_failure_of_the_exporter(self) -> None:
        with pytest.raises(OSError, match="no space"), exporting("it"):
            raise OSError("no space")


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_a_graph(name: str) -> None:
    model = Student(network(name), None, deploy="backbone").eval()
    module = trace(model, facts(None), subject=name).program.module()
    for size in (1, 7):
        with torch.no_grad():
            assert (module(images(size)) - model(images(size))).abs().max() < 1e-4


def test_compensation_itself_bounds_the_batch() -> None:
    """What the folded module is for; where this fails, it may no longer be needed."""

    class Wrapped(nn.Module):
        def __init__(self, phi: Compensation) -> None:
            super().__init__()
            self.phi = phi

        def forward(self, x: Tensor) -> Tensor:
            return self.phi(x)  # type: ignore[no-any-return]

    wrapped = Wrapped(compensation(num_prototypes=256)).eval().requires_grad_(requires_grad=False)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(wrapped, (logits(2),), dynamic_shapes=dynamic)
    with pytest.raises(Exception, match="Guard failed"):
        program.module()(logits(2**18 // (256 * 64) + 1))
