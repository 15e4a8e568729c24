"""ResNets against torchvision's: as it is, and with the stem exchanged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet34

from kdci.models.backbones.resnet import BLOCKS_PER_STAGE, ResNet


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(("depth", "reference"), [(18, resnet18), (34, resnet34)])
def test_equals_torchvision(depth: int, reference: Callable[..., nn.Module], stem: str) -> None:
    torch.manual_seed(0)
    ours = ResNet(BLOCKS_PER_STAGE[depth], num_classes=10, channels=3, stem=stem)
    theirs = reference(num_classes=10)
    if stem == "cifar":
        theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed, strict=True)
    images = torch.randn(2, 3, 32, 32) if stem == "cifar" else torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        # Train mode, so that running statistics are compared as well.
        torch.testing.assert_close(ours(images).logits, theirs(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ours.get_buffer("layer4.0.shortcut.1.running_var"),
        theirs.get_buffer("layer4.0.downsample.1.running_var"),
    )


def test_stride_and_stem_keep_small_images_large() -> None:
    net = ResNet(BLOCKS_PER_STAGE[18], num_classes=10, channels=1).eval()
    shapes: list[torch.Size] = []
    net.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    with torch.no_grad():
        net(torch.zeros(1, 1, 64, 64))
    assert shapes == [(1, 512, 8, 8)]
