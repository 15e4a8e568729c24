"""All backbones against the published parameter counts and one common interface."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdci.catalog import BACKBONE_NAMES
from kdci.models import BACKBONES, Prediction, build_backbone

# Parameters at 3 channels and 10 / 100 / 200 classes, and BatchNorm layers, as published.
PUBLISHED = {
    "wrn-16-1": ((175_066, 180_916, 187_416), 13),
    "wrn-16-2": ((691_674, 703_284, 716_184), 13),
    "wrn-40-1": ((563_930, 569_780, 576_280), 37),
    "wrn-40-2": ((2_243_546, 2_255_156, 2_268_056), 37),
    "vgg-11": ((9_231_114, 9_277_284, 9_328_584), 8),
    "resnet-18": ((11_173_962, 11_220_132, 11_271_432), 20),
    "resnet-34": ((21_282_122, 21_328_292, 21_379_592), 36),
}
FEATURES = {
    "wrn-10-1": 64,
    "wrn-16-1": 64,
    "wrn-16-2": 128,
    "wrn-40-1": 64,
    "wrn-40-2": 128,
    "vgg-11": 512,
    "resnet-18": 512,
    "resnet-34": 512,
}


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_batch_norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def test_names_are_the_catalogs() -> None:
    assert tuple(BACKBONES) == BACKBONE_NAMES


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"wrn-16-1.*got 'wrn-28-10'"):
        build_backbone("wrn-28-10", num_classes=10, channels=3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    counts, batch_norms = PUBLISHED[name]
    for num_classes, count in zip((10, 100, 200), counts, strict=True):
        with torch.device("meta"):
            backbone = build_backbone(name, num_classes=num_classes, channels=3)
        assert count_parameters(backbone) == count
        assert count_batch_norms(backbone) == batch_norms


def test_wrn_10_1_count_by_hand() -> None:
    # stem                3*16*9                                              =    432
    # block1  bn 2*16 + conv 16*16*9 + bn 2*16 + conv 16*16*9                 =  4,672
    # block2  bn 2*16 + conv 16*32*9 + bn 2*32 + conv 32*32*9 + 1x1 16*32     = 14,432
    # block3  bn 2*32 + conv 32*64*9 + bn 2*64 + conv 64*64*9 + 1x1 32*64     = 57,536
    # head    bn 2*64 + linear 64*10 + 10                                     =    778
    backbone = build_backbone("wrn-10-1", num_classes=10, channels=3)
    assert count_parameters(backbone) == 432 + 4_672 + 14_432 + 57_536 + 778 == 77_850
    assert count_batch_norms(backbone) == 3 * 2 + 1


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_small_grey_images_give_a_prediction_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, num_classes=7, channels=1)
    images = torch.randn(3, 1, 16, 16, requires_grad=True)
    prediction = backbone(images)
    assert isinstance(prediction, Prediction)
    assert prediction.logits.shape == (3, 7)
    assert prediction.features.shape == (3, FEATURES[name])
    torch.autograd.backward(prediction.logits.square().sum())
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        # A bias under BatchNorm has no effect, so its gradient is zero up to rounding.
        if not (name == "vgg-11" and parameter_name.endswith("bias")):
            assert parameter.grad.abs().sum() > 0, parameter_name
    assert images.grad is not None and bool((images.grad.abs().sum(dim=(1, 2, 3)) > 0).all())


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_features_are_what_the_last_layer_reads(name: str) -> None:
    torch.manual_seed(1)
    backbone = build_backbone(name, num_classes=5, channels=3).eval()
    *_, last = (layer for layer in backbone.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        prediction = backbone(torch.randn(2, 3, 16, 16))
        torch.testing.assert_close(
            prediction.logits, prediction.features @ last.weight.T + last.bias
        )


@pytest.mark.parametrize("name", ["wrn-10-1", "vgg-11", "resnet-18"])
def test_weights_follow_the_global_seed(name: str) -> None:
    torch.manual_seed(5)
    first = build_backbone(name, num_classes=10, channels=1).state_dict()
    torch.manual_seed(5)
    second = build_backbone(name, num_classes=10, channels=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
