"""VGG-11-BN against torchvision's layers, and which images it takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import vgg11_bn

from kdci.models.backbones.vgg import Vgg11


def torchvision_features(ours: Vgg11, num_poolings: int) -> nn.Sequential:
    """Torchvision's feature layers with our weights and only the first poolings."""
    kept: list[nn.Module] = []
    poolings = 0
    with torch.device("meta"):  # its unused linear layers hold 120 million weights
        layers = vgg11_bn().features
    for layer in layers:
        poolings += isinstance(layer, nn.MaxPool2d)
        if not isinstance(layer, nn.MaxPool2d) or poolings <= num_poolings:
            kept.append(layer)
    theirs = nn.Sequential(*kept)
    values = [value for key, value in ours.state_dict().items() if "classifier" not in key]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)), assign=True)
    return theirs


@pytest.mark.parametrize(("image_size", "num_poolings"), [(16, 3), (32, 3), (64, 4)])
def test_features_equal_torchvisions(image_size: int, num_poolings: int) -> None:
    torch.manual_seed(0)
    ours = Vgg11(num_classes=10, channels=3)
    theirs = torchvision_features(ours, num_poolings)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = theirs(images).flatten(2).mean(dim=2)
        torch.testing.assert_close(ours(images).features, expected, rtol=1e-4, atol=1e-5)


def test_smallest_image_is_8_px() -> None:
    net = Vgg11(num_classes=10, channels=1).eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 8, 8)).logits.shape == (1, 10)
        with pytest.raises(ValueError, match="8 px and more, got 7x7"):
            net(torch.zeros(1, 1, 7, 7))


def test_initialisation() -> None:
    torch.manual_seed(0)
    net = Vgg11(num_classes=100, channels=3)
    assert net.get_parameter("block4.0.weight").std().item() == pytest.approx(
        math.sqrt(2 / (9 * 512)), rel=0.02
    )
    assert not net.get_parameter("block4.0.bias").any()
    assert net.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not net.classifier.bias.any()
