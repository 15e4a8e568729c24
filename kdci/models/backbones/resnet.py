"""ResNet-18 and -34 with the CIFAR stem or the ImageNet stem (He et al., CVPR 2016).

Attribute names are those of the field's public checkpoints (DAFL, CMI, Fast-Datafree).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.pixel_model import Prediction

BLOCKS_PER_STAGE: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
}


WIDTH = 64
"""Channels that a ResNet's first convolution gives."""


def stem_convolution(channels: int, stem: str) -> nn.Conv2d:
    """Return a ResNet's first convolution, with PyTorch's default initialisation.

    Args:
        channels: Number of image channels C.
        stem: ``cifar``: 3x3 of stride 1; ``imagenet``: 7x7 of stride 2.
    """
    if stem == "cifar":
        return nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False)
    return nn.Conv2d(channels, WIDTH, 7, stride=2, padding=3, bias=False)


def stem_pooling(stem: str) -> nn.Module:
    """Return what follows the first activation: nothing, or 3x3 max-pooling of stride 2."""
    return nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Conv3x3(stride)-BN-ReLU-Conv3x3-BN plus the input, then ReLU.

    The shortcut is a 1x1 convolution with BN where shapes differ, otherwise the identity.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != out_width:
            self.shortcut.append(nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_width))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_width, H, W) to (B, out_width, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(maps))


def _stage(in_width: int, out_width: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_width, out_width, stride)
    return nn.Sequential(
        first, *(BasicBlock(out_width, out_width, 1) for _ in range(1, num_blocks))
    )


class ResNet(nn.Module):
    """ResNet of basic blocks; widths 64, 128, 256, 512 at strides 1, 2, 2, 2.

    PyTorch's default initialisation. Global average pooling makes it take any image of at
    least 1 pixel; D is 512. The stems differ in the first convolution's shape alone, so both
    have parameters of the same names.

    Args:
        blocks_per_stage: Number of basic blocks in each of the four stages.
        num_classes: Number of classes K.
        channels: Number of image channels C.
        stem: ``cifar``: a 3x3 convolution; ``imagenet``: a 7x7 one of stride 2, then 3x3
            max-pooling of stride 2.
    """

    def __init__(
        self,
        blocks_per_stage: Sequence[int],
        *,
        num_classes: int,
        channels: int,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        blocks1, blocks2, blocks3, blocks4 = blocks_per_stage
        self.conv1 = stem_convolution(channels, stem)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = stem_pooling(stem)
        self.layer1 = _stage(64, 64, num_blocks=blocks1, stride=1)
        self.layer2 = _stage(64, 128, num_blocks=blocks2, stride=2)
        self.layer3 = _stage(128, 256, num_blocks=blocks3, stride=2)
        self.layer4 = _stage(256, 512, num_blocks=blocks4, stride=2)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, images_BCHW: Tensor) -> Prediction:
        """Classify normalised images, shape (B, C, H, W)."""
        maps = self.pool(F.relu(self.bn1(self.conv1(images_BCHW))))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        features_BD = maps.mean(dim=(2, 3))
        return Prediction(self.linear(features_BD), features_BD)
