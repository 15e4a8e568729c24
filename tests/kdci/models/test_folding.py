"""A folded network computes the same function without the batch norms that were folded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.models import BACKBONES, PixelModel, Prediction, build_pixel_model
from kdci.models.folding import fold_batch_norms

SPEC = DATASETS["cifar10"]
SIZE = SPEC.image_size
LEFT = {"wrn-10-1": 4, "wrn-16-1": 7, "wrn-16-2": 6, "wrn-40-1": 19, "wrn-40-2": 18}
"""BatchNorms that follow a sum, or a convolution whose output is also the shortcut's."""


def lived_in(model: PixelModel) -> PixelModel:
    """Give every BatchNorm statistics and weights of its own."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                tensor.data.uniform_(low, high, generator=random)
    return model.eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BACKBONES, "torchvision-shufflenet_v2_x0_5", "timm-resnet10t"])
def test_predictions_stay_and_batch_norms_go(name: str) -> None:
    torch.manual_seed(0)
    model = lived_in(build_pixel_model(name, SPEC))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batch_norms(model, SIZE)
    assert norms(folded) == LEFT.get(name, 0) < norms(model)
    images = torch.rand(5, 3, SIZE, SIZE)
    for found, wanted in zip(folded(images), model(images), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert not folded.training and not any(p.requires_grad for p in folded.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_precision_format_and_normalisation_go_with_it() -> None:
    for channels_last in (True, False):
        model = build_pixel_model(
            "resnet-18", SPEC, autocast_dtype=torch.bfloat16, channels_last=channels_last
        )
        folded = fold_batch_norms(lived_in(model), SIZE)
        assert folded.autocast_dtype is torch.bfloat16
        weight = dict(folded.backbone.named_parameters())["layer1.0.conv1.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert torch.equal(folded.mean, model.mean) and torch.equal(folded.std, model.std)


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        fold_batch_norms(build_pixel_model("wrn-10-1", SPEC), SIZE)


class Twice(nn.Module):
    """Uses one convolution twice, each time before another BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images_BCHW: Tensor) -> Prediction:
        maps = self.second(self.conv(self.first(self.conv(images_BCHW)).relu()))
        return Prediction(maps.mean(dim=(2, 3)), maps.mean(dim=(2, 3)))


def test_a_copy_that_computes_something_else_is_not_taken() -> None:
    model = lived_in(PixelModel(Twice(), mean=SPEC.mean, std=SPEC.std))
    assert fold_batch_norms(model, SIZE) is model


def test_a_network_without_batch_norms_is_itself() -> None:
    model = PixelModel(build_pixel_model("vgg-11", SPEC).backbone, mean=SPEC.mean, std=SPEC.std)
    plain = fold_batch_norms(lived_in(model), SIZE)
    assert norms(plain) == 0
    assert fold_batch_norms(plain, SIZE) is plain
