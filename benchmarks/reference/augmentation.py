"""Crops and flips of images that are being synthesised, one image after the other.

What is drawn comes from the project's streams, so that both paths can be shown the same views.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.data.bank.augmentation import draw_crop_flip
from kdci.data.bank.resized_crop import draw_resized_crop


def crop_and_flip(images: Tensor, padding: int, random: torch.Generator) -> Tensor:
    """Return a random crop of each zero-padded image, half of them mirrored; (B, C, H, W)."""
    drawn = draw_crop_flip(len(images), crop_padding=padding, flip=True, generator=random)
    height, width = images.shape[2:]
    padded = F.pad(images, [padding] * 4)
    views = []
    for index in range(len(images)):
        top, left = int(drawn.tops[index]), int(drawn.lefts[index])
        view = padded[index, :, top : top + height, left : left + width]
        views.append(view.flip(-1) if drawn.flips[index] else view)
    return torch.stack(views)


def resized_crop_and_flip(
    images: Tensor, scale: tuple[float, float], random: torch.Generator
) -> Tensor:
    """Return a random box of each image, enlarged, half of them mirrored; (B, C, H, W)."""
    height, width = images.shape[2:]
    drawn = draw_resized_crop(
        len(images), height=height, width=width, scale=scale, flip=True, generator=random
    )
    views = []
    for index in range(len(images)):
        top, left = int(drawn.tops[index]), int(drawn.lefts[index])
        bottom, right = top + int(drawn.heights[index]), left + int(drawn.widths[index])
        box = images[index : index + 1, :, top:bottom, left:right]
        view = F.interpolate(box, size=(height, width), mode="bilinear", align_corners=False)
        views.append(view.flip(-1) if drawn.flips[index] else view)
    return torch.cat(views)
