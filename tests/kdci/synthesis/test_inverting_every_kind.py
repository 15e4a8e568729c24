"""The statistics of foreign and published backbones: R_bn and the methods that need it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import UserError
from kdci.methods.cmi import Cmi
from kdci.methods.deepinv import DeepInv
from kdci.methods.fast import Fast
from kdci.models import PixelModel, build_pixel_model, outline_backbone
from kdci.substitution.base import SourceContext
from kdci.substitution.registry import method_names
from kdci.synthesis.inversion import BatchNormStatistics, require_batch_norm
from kdci.synthesis.layer_features import LayerFeatures, feature_layers
from kdci.training.losses import bn_statistics_loss

SPEC = replace(DATASETS["cifar10"], num_classes=5)
KINDS = {
    "resnet-50": 53,
    "mobilenetv2": 52,
    "torchvision-shufflenet_v2_x0_5": 56,
    "timm-mobilenetv3_small_050": 34,
}
kinds = pytest.mark.parametrize("name", KINDS)


def build(name: str) -> PixelModel:
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    torch.manual_seed(0)
    return build_pixel_model(name, SPEC, stem="cifar")


def images(seed: int) -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def distance(model: PixelModel, pixels: Tensor) -> Tensor:
    with BatchNormStatistics(model) as found:
        model(pixels)
        return bn_statistics_loss(*found.compared)


@pytest.mark.slow
@kinds
def test_r_bn_is_least_for_the_images_that_made_the_statistics(name: str) -> None:
    model = build(name).requires_grad_(requires_grad=False)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == len(BatchNormStatistics(model)) == KINDS[name]
    for norm in norms:
        norm.momentum = 1.0  # running statistics become the batch's
    model.train()(images(0))
    model.eval()
    shifted = (0.3 * images(1)).requires_grad_()
    own, other = distance(model, images(0)), distance(model, shifted)
    assert float(own) < 0.25 * float(other.detach())
    (gradient,) = torch.autograd.grad(other, shifted)
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())
    with torch.no_grad():
        nearer = distance(model, shifted - 0.05 * gradient / gradient.norm())
    assert float(nearer) < float(other.detach())


@kinds
def test_every_layer_that_describes_an_image_is_read(name: str) -> None:
    model = build(name).eval().requires_grad_(requires_grad=False)
    pixels = images(0)[:2].requires_grad_()
    layers = feature_layers(model)
    with LayerFeatures(layers) as reading:
        prediction = model(pixels)
        features = reading.features
    assert features.shape[0] == 2 and 64 <= features.shape[1] <= 4096
    assert not torch.equal(features[0], features[1])
    (gradient,) = torch.autograd.grad(features[0].sum(), pixels)
    assert bool((gradient[0] != 0).any()) and not bool((gradient[1] != 0).any())
    assert torch.equal(model(pixels).logits, prediction.logits)


@pytest.mark.parametrize("block", [Fast, Cmi, DeepInv])
def test_a_network_without_batch_norm_is_refused(
    tmp_path: Path, block: type[Fast] | type[Cmi] | type[DeepInv]
) -> None:
    name = "torchvision-vgg11"
    network = outline_backbone(name, replace(SPEC, image_size=32))
    context = SourceContext(
        teacher=PixelModel(network, mean=SPEC.mean, std=SPEC.std).eval(),
        spec=SPEC,
        bank=ImageBank(tmp_path / "bank.bin", shape=(3, 32, 32)),
        seed=0,
        teacher_accuracy=0.9,
        open_world=lambda: torch.empty(0),
    )
    method = block.__name__.lower()
    assert method in method_names()
    with pytest.raises(UserError, match=f"methods.{method}: .*BatchNorm") as caught:
        block().source(context)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match=f"methods.{method}: .*found none in {name}"):
        require_batch_norm(network, method, name)
