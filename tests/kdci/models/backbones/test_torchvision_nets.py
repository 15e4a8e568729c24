"""ResNet-50 and MobileNetV2 against torchvision's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50

from kdci.models import Prediction
from kdci.models.backbones.torchvision_nets import build_mobilenetv2, build_resnet50

Build = Callable[..., nn.Module]
PAIRS = [(build_resnet50, resnet50), (build_mobilenetv2, mobilenet_v2)]


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("build", "reference"), PAIRS)
def test_the_imagenet_stem_is_torchvisions_network(build: Build, reference: Build) -> None:
    torch.manual_seed(3)
    theirs = reference(weights=None, num_classes=5).eval()
    torch.manual_seed(3)
    ours = build(num_classes=5, channels=3, stem="imagenet").eval()
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with torch.no_grad():
        prediction = ours(images(size=64))
        assert isinstance(prediction, Prediction)
        assert torch.equal(prediction.logits, theirs(images(size=64)))


@pytest.mark.parametrize(("build", "reference"), PAIRS)
def test_the_cifar_stem_is_torchvisions_network_with_other_first_layers(
    build: Build, reference: Build
) -> None:
    torch.manual_seed(0)
    ours = build(num_classes=5, channels=3).eval()
    theirs = reference(weights=None, num_classes=5).eval()
    if build is build_resnet50:
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    else:
        for name in ("features.0.0", "features.2.conv.1.0"):
            convolution = theirs.get_submodule(name)
            assert isinstance(convolution, nn.Conv2d) and convolution.stride == (2, 2)
            convolution.stride = (1, 1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(ours(images()).logits, theirs(images()))


@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("imagenet", 2)])
@pytest.mark.parametrize(
    ("build", "layer"), [(build_resnet50, "layer4"), (build_mobilenetv2, "features")]
)
def test_resolution(build: Build, layer: str, stem: str, side: int) -> None:
    with torch.device("meta"):
        net = build(num_classes=5, channels=1, stem=stem).eval()
        shapes: list[torch.Size] = []
        net.get_submodule(layer).register_forward_hook(lambda m, i, o: shapes.append(o.shape[-2:]))
        net(torch.empty(1, 1, 64, 64))
    assert shapes == [(side, side)]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
    ("build", "first"), [(build_resnet50, "conv1"), (build_mobilenetv2, "features.0.0")]
)
def test_new_first_layers_start_as_torchvisions_do(build: Build, first: str, stem: str) -> None:
    torch.manual_seed(0)
    weight = build(num_classes=2, channels=1, stem=stem).get_parameter(f"{first}.weight")
    fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
    assert weight.shape[1] == 1
    assert float(weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    assert abs(float(weight.detach().mean())) < 0.2 * (2 / fan_out) ** 0.5


def test_nothing_is_left_to_chance_in_training() -> None:
    """Dropout would draw from the global stream, which no checkpoint keeps."""
    torch.manual_seed(0)
    net = build_mobilenetv2(num_classes=5, channels=3).train()
    before = torch.get_rng_state()
    one, two = net(images()).logits, net(images()).logits
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), before)
