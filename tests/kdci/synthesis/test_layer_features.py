from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from kdci.models import BACKBONES, PixelModel, build_backbone
from kdci.synthesis.layer_features import LayerFeatures, feature_layers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.BatchNorm2d(2)
        self.convolution = nn.Conv2d(2, 3, 3)
        self.second = nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.second(self.convolution(self.first(maps)))
        return found


def read(model: nn.Module, images: Tensor) -> Tensor:
    with LayerFeatures(feature_layers(model)) as layers:
        model(images)
        return layers.features


def test_features_are_the_means_of_the_inputs() -> None:
    net = TwoNorms().eval()
    images = torch.rand(4, 2, 5, 6, generator=seeded())
    got = read(net, images)
    hidden = net.convolution(net.first(images)).detach()
    for b in range(4):
        expected = [float(m.mean()) for m in [*images[b], *hidden[b]]]
        assert got[b].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


EXPECTED_FEATURES = {
    "resnet-18": 512,
    "resnet-34": 512,
    "resnet-50": 64 + 256 + 512 + 1024,
    "mobilenetv2": 3736,
    "vgg-11": 2752,
    "wrn-40-2": 2704,
}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_is_read(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, num_classes=3, channels=1).eval()
    model = PixelModel(backbone, mean=(0.5,), std=(0.5,)).requires_grad_(False)
    images = torch.rand(2, 1, 8, 8, generator=seeded()).requires_grad_()
    got = read(model, images)
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert got.shape == (2, EXPECTED_FEATURES.get(name, sum(norms)))
    assert got.dtype == torch.float32
    assert not torch.equal(got[0], got[1])
    (gradient,) = torch.autograd.grad(got[0].sum(), images)
    # Images do not mix, and the features of an image depend on all of it.
    assert bool((gradient[0] != 0).any()) and not bool((gradient[1] != 0).any())


def test_a_resnet_is_read_at_the_inputs_of_its_stages() -> None:
    torch.manual_seed(0)
    net = build_backbone("resnet-18", num_classes=3, channels=1).eval()
    images = torch.rand(2, 1, 8, 8, generator=seeded())
    with torch.no_grad():
        got = read(net, images)
        maps, expected = images, []
        for name in ("conv1", "bn1"):
            maps = net.get_submodule(name)(maps)
        maps = torch.relu(maps)
        for index in (1, 2, 3, 4):
            expected.append(maps.mean((2, 3)))
            maps = net.get_submodule(f"layer{index}")(maps)
    torch.testing.assert_close(got, torch.cat(expected, dim=1))
    assert [part.shape[1] for part in expected] == [64, 64, 128, 256]


def test_other_libraries_resnets_are_read_at_their_stages_too() -> None:
    timm = ["timm-resnet18"] if importlib.util.find_spec("timm") is not None else []
    for name in ("resnet-50", "torchvision-resnet18", *timm):
        with torch.device("meta"):
            net = build_backbone(name, num_classes=3, channels=3)
        stages = [net.get_submodule(f"layer{index}") for index in (1, 2, 3, 4)]
        assert feature_layers(PixelModel(net, mean=(0.5,) * 3, std=(0.5,) * 3)) == stages


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("torchvision-shufflenet_v2_x0_5", 1),
        ("mobilenetv2", 4),
        ("torchvision-densenet121", 11),
        ("torchvision-vgg11", 1),
    ],
)
def test_many_norms_are_read_at_even_distances(name: str, step: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, num_classes=3, channels=3)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    read_at = feature_layers(net)
    assert read_at == norms[::step]
    widths = [sum(norm.num_features for norm in norms[::s]) for s in (step, step - 1) if s]
    assert widths[0] <= 4096 and all(width > 4096 for width in widths[1:])


def test_low_precision_inputs_are_averaged_in_float32() -> None:
    layer = nn.Identity()
    maps = torch.rand(3, 2, 16, 16, generator=seeded()).bfloat16()
    with LayerFeatures([layer]) as layers:
        layer(maps)
        got = layers.features
    assert got.dtype == torch.float32
    exact = maps.double().mean((2, 3))
    torch.testing.assert_close(got.double(), exact, atol=1e-6, rtol=0)
    assert float((maps.mean((2, 3)).double() - exact).abs().max()) > 1e-4


def test_nothing_outlives_the_context_and_it_can_be_entered_again() -> None:
    net = TwoNorms().eval()
    layers = LayerFeatures(feature_layers(net))
    images = torch.rand(2, 2, 5, 5, generator=seeded())
    readings = []
    for _ in range(2):
        with layers:
            net(2 * images)
            net(images)  # the last pass counts
            readings.append(layers.features)
        assert not any(module._forward_pre_hooks for module in net.modules())
        with pytest.raises(KeyError):
            _ = layers.features
    assert torch.equal(readings[0], readings[1])
    torch.testing.assert_close(readings[0][:, :2], images.mean((2, 3)))
    with pytest.raises(RuntimeError, match="inside"), layers:
        raise RuntimeError("inside")
    assert not any(module._forward_pre_hooks for module in net.modules())
