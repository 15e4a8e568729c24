"""Each kind of backbone in a PixelModel: memory format, precision, training, exported graphs."""

from __future__ import annotations

import importlib.util
import io
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.models import PixelModel, build_pixel_model
from kdci.models.students import Student

SPEC = replace(DATASETS["cifar10"], num_classes=5)
KINDS = [
    ("resnet-18", "imagenet"),
    ("resnet-50", "imagenet"),
    ("mobilenetv2", "imagenet"),
    ("torchvision-shufflenet_v2_x0_5", "cifar"),
    ("timm-mobilenetv3_small_050", "cifar"),
]
kinds = pytest.mark.parametrize(("name", "stem"), KINDS)
both_stems = pytest.mark.parametrize(
    ("name", "stem"), [*KINDS, ("resnet-50", "cifar"), ("mobilenetv2", "cifar")]
)


def build(name: str, stem: str, **options: object) -> PixelModel:
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    model = build_pixel_model(name, SPEC, stem=stem, **options)  # type: ignore[arg-type]
    model(images(8))  # running statistics
    return model.eval()


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@pytest.mark.slow
@both_stems
def test_channels_last_changes_the_format_and_nothing_else(name: str, stem: str) -> None:
    last = build(name, stem)
    plain = build(name, stem, channels_last=False)
    plain.load_state_dict(last.state_dict())
    formats = [
        next(w for w in m.parameters() if w.dim() == 4 and w.shape[1] > 1 and w.shape[2] > 1)
        for m in (plain, last)
    ]
    assert formats[0].is_contiguous()
    assert formats[1].is_contiguous(memory_format=torch.channels_last)
    found, expected = last(images(3)), plain(images(3))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.features, expected.features, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@both_stems
def test_autocast_answers_alike_and_trains(name: str, stem: str) -> None:
    exact = build(name, stem)
    reduced = build(name, stem, autocast_dtype=torch.bfloat16)
    reduced.load_state_dict(exact.state_dict())
    with torch.no_grad():
        one, other = exact(images(4)), reduced(images(4))
    assert other.logits.dtype == other.features.dtype == torch.float32
    assert not torch.equal(one.logits, other.logits)
    error = (one.logits - other.logits).norm() / one.logits.norm()
    assert float(error) < 0.05
    pixels = images(4).requires_grad_()
    loss = nn.functional.cross_entropy(reduced.train()(pixels).logits, torch.arange(4))
    torch.autograd.backward(loss)
    assert pixels.grad is not None and bool(pixels.grad.isfinite().all())
    for parameter_name, parameter in reduced.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), parameter_name
        assert parameter.grad.dtype == torch.float32


@pytest.mark.slow
@kinds
def test_training_lowers_the_loss(name: str, stem: str) -> None:
    model = build(name, stem).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    labels = torch.arange(10) % 5
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(images(10)).logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.slow  # ten seconds and more in all; two kinds are exported below
@kinds
def test_an_exported_student_takes_any_number_of_images(name: str, stem: str) -> None:
    student = Student(build(name, stem), None, deploy="backbone").eval()
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of channels-last weights, which come back whole
        torch.export.save(export(student), file)
    file.seek(0)
    graph = torch.export.load(file).module()
    for count in (1, 2, 7):
        with torch.no_grad():
            torch.testing.assert_close(
                graph(images(count)), student(images(count)), rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stem"), [KINDS[0], KINDS[3]])
def test_an_exported_graph_keeps_the_features(name: str, stem: str) -> None:
    model = build(name, stem)
    graph = export(model).module()
    for count in (1, 2, 7):
        with torch.no_grad():
            found, expected = graph(images(count)), model(images(count))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def export(model: nn.Module) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, (images(2),), dynamic_shapes=({0: batch},))
