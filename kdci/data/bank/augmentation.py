"""Random crop and flip of a whole batch at once, as far as a dataset allows.

Legend: B batch, C channels, H and W image height and width, p crop padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.resized_crop import draw_flips, random_resized_crop


class CropFlip(NamedTuple):
    """What is drawn for each image.

    Attributes:
        tops: (B,) int64 in [0, 2p], first row of the crop in the padded image.
        lefts: (B,) int64 in [0, 2p], first column.
        flips: (B,) bool, whether the crop is mirrored left to right.
    """

    tops: Tensor
    lefts: Tensor
    flips: Tensor


def draw_crop_flip(
    num_images: int, *, crop_padding: int, flip: bool, generator: torch.Generator
) -> CropFlip:
    """Draw independent crops and flips on the CPU, one for each of B images.

    Args:
        num_images: Batch size B.
        crop_padding: Zero padding p in pixels on each side, 0 or more.
        flip: Whether half of the images, at random, are mirrored.
        generator: A CPU generator.
    """
    shifts = torch.randint(0, 2 * crop_padding + 1, (2, num_images), generator=generator)
    return CropFlip(shifts[0], shifts[1], draw_flips(num_images, flip, generator))


def apply_crop_flip(images: Tensor, drawn: CropFlip, *, crop_padding: int) -> Tensor:
    """Crop each image out of its zero-padded self, then mirror it where drawn.

    Args:
        images: (B, C, H, W), any dtype, any device; gradients pass through.
        drawn: From ``draw_crop_flip`` with the same padding.
        crop_padding: Zero padding p in pixels.

    Returns:
        (B, C, H, W), same dtype and device.
    """
    height, width = images.shape[2:]
    padded_width = width + 2 * crop_padding
    columns = torch.arange(width).expand(len(images), -1)
    columns = torch.where(drawn.flips[:, None], columns.flip(1), columns) + drawn.lefts[:, None]
    rows = torch.arange(height) + drawn.tops[:, None]
    # (B, 1, H * W): where each output pixel lies in the flattened padded image. No two output
    # pixels share a source, so the backward scatter adds nothing twice and is deterministic.
    index = (rows[:, :, None] * padded_width + columns[:, None, :]).flatten(1).unsqueeze(1)
    padded = F.pad(images, [crop_padding] * 4).flatten(2)
    index = index.to(images.device, non_blocking=True).expand(-1, images.shape[1], -1)
    return padded.gather(2, index).view(images.shape)


def augment(images: Tensor, spec: DatasetSpec, generator: torch.Generator) -> Tensor:
    """Augment a batch as the dataset allows, another way for each image.

    On CIFAR it is the training transform of all six methods: RandomCrop(32, padding=4) and
    horizontal flip with probability 1/2.

    Args:
        images: (B, C, H, W), float in [0, 1] or uint8; gradients pass through.
        spec: With a ``resized_crop`` a random box of such a share of each image is enlarged
            again; else padded images are cropped.
        generator: A CPU generator, wherever the images are.

    Returns:
        (B, C, H, W) on the same device and scale; same dtype, but of resized uint8 float32.
    """
    padding, flip = spec.crop_padding, spec.flip
    if spec.resized_crop is not None:
        floats = images if images.is_floating_point() else images.float()
        return random_resized_crop(floats, scale=spec.resized_crop, flip=flip, generator=generator)
    if padding == 0 and not flip:
        return images
    drawn = draw_crop_flip(len(images), crop_padding=padding, flip=flip, generator=generator)
    return apply_crop_flip(images, drawn, crop_padding=padding)
