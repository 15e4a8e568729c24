"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016).

Attribute names are those of the field's public checkpoints (Fast-Datafree, CMI), so that a
user's own teacher loads as it is.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.pixel_model import Prediction


def draw_convolutions_(network: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / (k^2 out)), with biases of 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class WideBlock(nn.Module):
    """Pre-activation block: BN-ReLU-Conv3x3(stride)-BN-ReLU-Conv3x3, plus its input.

    Where the widths differ the shortcut is a bare 1x1 convolution of the *activated* input,
    otherwise it is the raw input.
    """

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False)
            if in_width != out_width
            else None
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_width, H, W) to (B, out_width, H / stride, W / stride)."""
        activated = F.relu(self.bn1(maps))
        shortcut = maps if self.convShortcut is None else self.convShortcut(activated)
        hidden = F.relu(self.bn2(self.conv1(activated)))
        residual: Tensor = self.conv2(hidden)
        return shortcut + residual


def _stage(in_width: int, out_width: int, *, num_blocks: int, stride: int) -> nn.Sequential:
    """Return ``num_blocks`` blocks under the name ``layer``; the first has the stride."""
    first = WideBlock(in_width, out_width, stride)
    others = (WideBlock(out_width, out_width, 1) for _ in range(1, num_blocks))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *others)))


class WideResNet(nn.Module):
    """WRN-d-k without dropout; widths 16k, 32k, 64k at strides 1, 2, 2.

    Global average pooling makes it take any image of at least 1 pixel; D is 64k.

    Args:
        depth: Number of convolutions on the main path plus the linear layer, 6n + 4.
        widen_factor: k, the multiple of the basic widths.
        num_classes: Number of classes K.
        channels: Number of image channels C.
    """

    def __init__(self, depth: int, widen_factor: int, *, num_classes: int, channels: int) -> None:
        super().__init__()
        num_blocks = (depth - 4) // 6
        stem = 16
        width1, width2, width3 = (stem * 2**stage * widen_factor for stage in range(3))
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.block1 = _stage(stem, width1, num_blocks=num_blocks, stride=1)
        self.block2 = _stage(width1, width2, num_blocks=num_blocks, stride=2)
        self.block3 = _stage(width2, width3, num_blocks=num_blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(width3)
        self.fc = nn.Linear(width3, num_classes)
        draw_convolutions_(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_BCHW: Tensor) -> Prediction:
        """Classify normalised images, shape (B, C, H, W)."""
        maps = self.block3(self.block2(self.block1(self.conv1(images_BCHW))))
        features_BD = F.relu(self.bn1(maps)).mean(dim=(2, 3))
        return Prediction(self.fc(features_BD), features_BD)
