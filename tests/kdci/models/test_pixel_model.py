"""PixelModel: normalisation, precision, memory format, what its state dict holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.models import PixelModel, Prediction, build_backbone, build_pixel_model

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Recorder(nn.Module):
    """A backbone that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen = torch.empty(0)
        self.in_autocast = False

    def forward(self, images: Tensor) -> Prediction:
        self.seen = images
        self.in_autocast = torch.is_autocast_enabled(images.device.type)
        features = self.conv(images).mean(dim=(2, 3))
        return Prediction(features[:, :2], features)


def wrn(**options: torch.dtype) -> PixelModel:
    torch.manual_seed(0)
    backbone = build_backbone("wrn-10-1", num_classes=10, channels=3)
    return PixelModel(backbone, mean=MEAN, std=STD, **options).eval()


def test_normalisation_equals_naive() -> None:
    recorder = Recorder()
    images = torch.rand(2, 3, 5, 5)
    PixelModel(recorder, mean=MEAN, std=STD)(images)
    for row in range(2):
        for channel in range(3):
            expected = (images[row, channel] - MEAN[channel]) / STD[channel]
            torch.testing.assert_close(recorder.seen[row, channel], expected)


def test_without_autocast_it_is_the_backbone_bit_for_bit() -> None:
    model = wrn()
    images = torch.rand(4, 3, 16, 16)
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = model.backbone(normalised)
    for prediction in (model(images), wrn()(images)):
        assert torch.equal(prediction.logits, expected.logits)
        assert torch.equal(prediction.features, expected.features)


def test_precision_is_the_models_own() -> None:
    recorder = Recorder()
    model = PixelModel(recorder, mean=MEAN, std=STD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.rand(1, 3, 5, 5)).logits.dtype == torch.float32
    assert not recorder.in_autocast
    model.autocast_dtype = torch.bfloat16
    model(torch.rand(1, 3, 5, 5))
    assert recorder.in_autocast


def test_autocast_is_close_and_returns_float32() -> None:
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    exact, reduced = wrn()(images), wrn(autocast_dtype=torch.bfloat16)(images)
    assert reduced.logits.dtype == reduced.features.dtype == torch.float32
    assert not torch.equal(reduced.logits, exact.logits)
    torch.testing.assert_close(reduced.logits, exact.logits, rtol=0.05, atol=0.05)
    reduced.logits.sum().backward()
    assert images.grad is not None and images.grad.dtype == torch.float32


def test_channels_last_changes_the_format_and_nothing_else() -> None:
    recorder = Recorder()
    model = PixelModel(recorder, mean=MEAN, std=STD)
    images = torch.rand(2, 3, 8, 8)
    plain = model(images)
    assert recorder.seen.is_contiguous()
    recorder.to(memory_format=torch.channels_last)
    last = model(images)
    assert recorder.seen.is_contiguous(memory_format=torch.channels_last)
    assert not recorder.seen.is_contiguous()
    torch.testing.assert_close(last.logits, plain.logits)


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_channels_last_is_close_for_a_whole_backbone(dataset: str) -> None:
    spec = DATASETS[dataset]
    torch.manual_seed(0)
    plain = build_pixel_model("wrn-16-1", spec, channels_last=False).eval()
    last = build_pixel_model("wrn-16-1", spec).eval()
    last.load_state_dict(plain.state_dict())
    weight = last.get_parameter("backbone.block3.layer.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    images = torch.rand(4, spec.channels, spec.image_size, spec.image_size)
    torch.testing.assert_close(last(images).logits, plain(images).logits, rtol=1e-4, atol=1e-5)


def test_built_from_a_spec() -> None:
    spec = DATASETS["digits"]
    model = build_pixel_model("wrn-10-1", spec, autocast_dtype=torch.bfloat16)
    assert model.autocast_dtype == torch.bfloat16
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(spec.mean))
    torch.testing.assert_close(model.std.flatten(), torch.tensor(spec.std))
    assert model(torch.rand(2, 1, 16, 16)).logits.shape == (2, spec.num_classes)


def test_state_dict_holds_the_backbone_alone() -> None:
    model = wrn()
    assert all(key.startswith("backbone.") for key in model.state_dict())
    assert len(model.state_dict()) == len(model.backbone.state_dict())
    assert torch.equal(copy.deepcopy(model).mean, model.mean)


def test_gradient_reaches_the_pixels_scaled_by_the_deviation() -> None:
    recorder = Recorder()
    images = torch.rand(1, 3, 5, 5, requires_grad=True)
    model = PixelModel(recorder, mean=MEAN, std=STD)
    (gradient,) = torch.autograd.grad(model(images).features.sum(), images)
    inner = recorder.seen.detach().requires_grad_()
    (inner_gradient,) = torch.autograd.grad(recorder(inner).features.sum(), inner)
    torch.testing.assert_close(gradient, inner_gradient / torch.tensor(STD)[:, None, None])


@pytest.mark.parametrize(
    "images",
    [torch.rand(2, 1, 8, 8), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)],
    ids=["channels", "integers"],
)
def test_images_that_would_broadcast_or_overflow_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"floating point with 3 channels, got"):
        wrn()(images)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,))])
def test_impossible_normalisation_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="mean and std"):
        PixelModel(Recorder(), mean=mean, std=std)
