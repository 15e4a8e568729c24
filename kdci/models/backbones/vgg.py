"""VGG-11 with batch normalisation and one linear layer, for small images.

After Simonyan and Zisserman, ICLR 2015, in the form that data-free distillation uses.
Attribute names are those of the field's public checkpoints (CMI, Fast-Datafree).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.backbones.wide_resnet import draw_convolutions_
from kdci.models.pixel_model import Prediction

MIN_IMAGE_SIZE = 8
"""Three 2x2 poolings leave one pixel of an 8 px image and nothing of a smaller one."""

FOUR_POOLINGS_HEIGHT = 64
"""Images of this height are pooled once more, after the fourth group."""


def _group(in_width: int, out_width: int, *, num_convolutions: int) -> nn.Sequential:
    """Return Conv-BN pairs with ReLU between them; the last ReLU is left to the caller."""
    layers: list[nn.Module] = []
    for index in range(num_convolutions):
        if index:
            layers.append(nn.ReLU())
        width = out_width if index else in_width
        layers += [nn.Conv2d(width, out_width, 3, padding=1), nn.BatchNorm2d(out_width)]
    return nn.Sequential(*layers)


class Vgg11(nn.Module):
    """VGG-11-BN: groups [64] [128] [256, 256] [512, 512] [512, 512]; D is 512.

    A 2x2 max-pooling follows groups 0, 1 and 2, and group 3 where the images are 64 px
    high; then global average pooling. Images of 8 px and more are taken.

    Args:
        num_classes: Number of classes K.
        channels: Number of image channels C.
    """

    def __init__(self, *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.block0 = _group(channels, 64, num_convolutions=1)
        self.block1 = _group(64, 128, num_convolutions=1)
        self.block2 = _group(128, 256, num_convolutions=2)
        self.block3 = _group(256, 512, num_convolutions=2)
        self.block4 = _group(512, 512, num_convolutions=2)
        self.classifier = nn.Linear(512, num_classes)
        draw_convolutions_(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images_BCHW: Tensor) -> Prediction:
        """Classify normalised images, shape (B, C, H, W).

        Raises:
            ValueError: If an image side is below 8 px.
        """
        height, width = images_BCHW.shape[2:]
        if min(height, width) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"vgg-11 takes images of {MIN_IMAGE_SIZE} px and more, got {height}x{width}"
            )
        maps = images_BCHW
        for group in (self.block0, self.block1, self.block2):
            maps = F.max_pool2d(F.relu(group(maps)), 2)
        maps = F.relu(self.block3(maps))
        if height == FOUR_POOLINGS_HEIGHT:
            maps = F.max_pool2d(maps, 2)
        features_BD = F.relu(self.block4(maps)).mean(dim=(2, 3))
        return Prediction(self.classifier(features_BD), features_BD)
