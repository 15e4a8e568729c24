"""All backbones against the published parameter counts and one common interface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from kdci.config.catalog import BACKBONE_NAMES, DATASETS, STEMS
from kdci.models import BACKBONES, WITH_STEMS, Prediction, build_backbone, outline_backbone
from tests.project_code import ROOT

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
# Parameters at 3 channels and 200 / 1000 classes with the ImageNet stem: torchvision's.
PUBLISHED_IMAGENET = {
    "resnet-18": ((11_279_112, 11_689_512), 20),
    "resnet-34": ((21_387_272, 21_797_672), 36),
    "resnet-50": ((23_917_832, 25_557_032), 53),
    "mobilenetv2": ((2_480_072, 3_504_872), 52),
}
FEATURES = {
    "mobilenetv2": 1280,
    "wrn-10-1": 64,
    "wrn-16-1": 64,
    "wrn-16-2": 128,
    "wrn-40-1": 64,
    "wrn-40-2": 128,
    "vgg-11": 512,
    "resnet-18": 512,
    "resnet-34": 512,
    "resnet-50": 2048,
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


@pytest.mark.parametrize("stem", ["auto", "7x7", ""])
@pytest.mark.parametrize("name", ["resnet-18", "mobilenetv2", "resnet-50", "wrn-10-1"])
def test_unknown_stem_is_refused(name: str, stem: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="one of cifar, imagenet, got"):
        build_backbone(name, num_classes=10, channels=3, stem=stem)


def test_only_some_backbones_have_a_choice_of_stems() -> None:
    for name in BACKBONE_NAMES:
        with torch.device("meta"):
            one, other = (build_backbone(name, num_classes=2, channels=3, stem=s) for s in STEMS)
            images = torch.empty(1, 3, 64, 64)
        shapes = [[tuple(p.shape) for p in net.parameters()] for net in (one, other)]
        maps: list[int] = []
        for net in (one.eval(), other.eval()):
            sides: list[int] = []
            for layer in net.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.register_forward_hook(lambda m, i, o, s=sides: s.append(o.shape[-1]))
            net(images)
            maps.append(sides[-1])
        assert (name in WITH_STEMS) == (maps[0] != maps[1])
        # `imagenet` divides the resolution by four, and makes nothing else of the network.
        assert maps[0] == (4 if name in WITH_STEMS else 1) * maps[1]
        assert shapes[0][1:] == shapes[1][1:]


@pytest.mark.parametrize("name", PUBLISHED_IMAGENET)
def test_published_counts_with_the_imagenet_stem(name: str) -> None:
    counts, batch_norms = PUBLISHED_IMAGENET[name]
    for num_classes, count in zip((200, 1000), counts, strict=True):
        with torch.device("meta"):
            options: dict[str, Any] = {"num_classes": num_classes, "channels": 3}
            backbone = build_backbone(name, stem="imagenet", **options)
            small = build_backbone(name, stem="cifar", **options)
        assert count_parameters(backbone) == count
        assert count_batch_norms(backbone) == count_batch_norms(small) == batch_norms
        # 64 filters of 3 channels, 7x7 in the place of 3x3; MobileNetV2 changes strides alone.
        more = 0 if name == "mobilenetv2" else 64 * 3 * (7 * 7 - 3 * 3)
        assert count_parameters(small) == count - more


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


def test_an_outline_has_the_layers_and_no_memory() -> None:
    before = torch.get_rng_state()
    spec = replace(DATASETS["cifar10"], num_classes=200)
    outline = outline_backbone("resnet-50", spec, stem="imagenet")
    assert count_parameters(outline) == PUBLISHED_IMAGENET["resnet-50"][0][0]
    assert all(parameter.is_meta for parameter in outline.parameters())
    # RegNet's constructor computes with tensors: it is built for real.
    outline_backbone("torchvision-regnet_y_400mf", spec)
    assert torch.equal(torch.get_rng_state(), before)


class TestPage:
    """docs/backbones.md: its table is what the builders make."""

    PAGE = ROOT / "docs" / "backbones.md"

    def rows(self) -> dict[tuple[str, str], list[str]]:
        lines = self.PAGE.read_text(encoding="utf-8").splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {(row[0].strip("`"), row[1].strip("`")): row[2:] for row in cells if len(row) == 8}

    def test_counts(self) -> None:
        rows = self.rows()
        expected = {(name, "") for name in BACKBONES if name not in WITH_STEMS}
        expected |= {(name, stem) for name in WITH_STEMS for stem in STEMS}
        assert expected <= set(rows)
        for name, stem in expected:
            found = []
            for num_classes in (10, 100, 200, 1000):
                spec = replace(DATASETS["cifar10"], num_classes=num_classes)
                net = outline_backbone(name, spec, stem=stem or "cifar")
                found.append(f"{count_parameters(net):,}")
            found += [str(count_batch_norms(net)), str(FEATURES[name])]
            assert rows[name, stem] == found
