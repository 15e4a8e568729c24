"""Random resized crop of a whole batch at once, with gradient.

Legend: B batch, C channels, H and W image height and width. Boxes are whole pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

TRIES = 10
"""Boxes drawn for an image before its centre is taken, as torchvision's."""

RATIO = (3 / 4, 4 / 3)
"""Range of width over height, as torchvision's."""


class ResizedCrop(NamedTuple):
    """What is drawn for each image.

    Attributes:
        tops: (B,) int64, first row of the box.
        lefts: (B,) int64, first column.
        heights: (B,) int64 in [1, H].
        widths: (B,) int64 in [1, W].
        flips: (B,) bool, whether the resized box is mirrored left to right.
    """

    tops: Tensor
    lefts: Tensor
    heights: Tensor
    widths: Tensor
    flips: Tensor


def draw_flips(num_images: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return (B,) bool, half of them true, at random; without ``flip`` none, and nothing drawn."""
    if not flip:
        return torch.zeros(num_images, dtype=torch.bool)
    return torch.randint(0, 2, (num_images,), generator=generator).bool()


def draw_resized_crop(
    num_images: int,
    *,
    height: int,
    width: int,
    scale: tuple[float, float],
    flip: bool,
    generator: torch.Generator,
) -> ResizedCrop:
    """Draw independent boxes and flips on the CPU, as torchvision's RandomResizedCrop.

    Area uniform, logarithm of the side ratio uniform, then the place uniform among those
    that fit. A box larger than the image is drawn again; after ``TRIES`` of them the largest
    central box of a lawful ratio is taken.

    Args:
        num_images: Batch size B.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        scale: Range of the box's share of the image's area, within (0, 1], lowest first.
        flip: Whether half of the images, at random, are mirrored.
        generator: A CPU generator.
    """
    shape, dtype = (TRIES, num_images), torch.float64
    shares = torch.empty(shape, dtype=dtype).uniform_(*scale, generator=generator)
    logs = (math.log(RATIO[0]), math.log(RATIO[1]))
    ratios = torch.empty(shape, dtype=dtype).uniform_(*logs, generator=generator).exp()
    areas = height * width * shares
    widths = (areas * ratios).sqrt().round().long()
    heights = (areas / ratios).sqrt().round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    # argmax of bytes: the first try that fits, or 0 where none does.
    first = fits.byte().argmax(dim=0, keepdim=True)
    found = fits.any(dim=0)
    central_height, central_width = _central_box(height, width)
    box_heights = torch.where(found, heights.gather(0, first)[0], central_height)
    box_widths = torch.where(found, widths.gather(0, first)[0], central_width)
    shifts = torch.rand(2, num_images, dtype=dtype, generator=generator)
    room_below, room_beside = height - box_heights, width - box_widths
    tops = torch.where(found, (shifts[0] * (room_below + 1)).long(), room_below // 2)
    lefts = torch.where(found, (shifts[1] * (room_beside + 1)).long(), room_beside // 2)
    flips = draw_flips(num_images, flip, generator)
    return ResizedCrop(tops, lefts, box_heights, box_widths, flips)


def apply_resized_crop(images: Tensor, drawn: ResizedCrop) -> Tensor:
    """Enlarge each image's box to the whole image, bilinearly, then mirror it where drawn.

    Pixel centres lie at halves (torch's ``align_corners=False``), so every image equals
    torchvision's ``resized_crop`` of its box.

    Args:
        images: (B, C, H, W), floating point, any device; gradients pass through.
        drawn: From ``draw_resized_crop`` for images of this size.

    Returns:
        (B, C, H, W), same dtype and device.
    """
    height, width = images.shape[2:]
    rows = _interpolation(drawn.tops, drawn.heights, height)
    columns = _interpolation(drawn.lefts, drawn.widths, width)
    columns = torch.where(drawn.flips[:, None, None], columns.flip(1), columns)
    # Bilinear resizing is separable. Matrix products, unlike gathering from four neighbours,
    # have a backward pass that repeats bit for bit on a GPU.
    rows = rows.to(images, non_blocking=True).unsqueeze(1)
    columns = columns.to(images, non_blocking=True).unsqueeze(1)
    resized: Tensor = rows @ images @ columns.transpose(2, 3)
    return resized


def random_resized_crop(
    images: Tensor, *, scale: tuple[float, float], flip: bool, generator: torch.Generator
) -> Tensor:
    """Crop another random box out of each image, enlarge it, and mirror half of the images.

    Args:
        images: (B, C, H, W), floating point; gradients pass through.
        scale: Range of the box's share of the image's area, within (0, 1].
        flip: Whether to mirror half of the images, at random.
        generator: A CPU generator, wherever the images are.

    Returns:
        (B, C, H, W), same dtype and device.

    Raises:
        ValueError: If the images are no floating-point (B, C, H, W).
    """
    if images.dim() != 4 or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images must be floating point (B, C, H, W), got {got}")
    height, width = images.shape[2:]
    drawn = draw_resized_crop(
        len(images), height=height, width=width, scale=scale, flip=flip, generator=generator
    )
    return apply_resized_crop(images, drawn)


def _central_box(height: int, width: int) -> tuple[int, int]:
    """Return height and width of the largest box of a ratio in the range."""
    if width / height < RATIO[0]:
        return round(width / RATIO[0]), width
    if width / height > RATIO[1]:
        return height, round(height * RATIO[1])
    return height, width


def _interpolation(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return for each image the weights of its pixels along one axis, (B, size, size).

    Row o holds the weights of output pixel o: a hat of width 1 around where it lies in the
    input, so at most two neighbours count. Places beyond the outermost pixel centres of the
    box are moved onto them, hence nothing outside of the box has any weight.
    """
    centres = (torch.arange(size) + 0.5) * (lengths[:, None] / size) - 0.5
    inside = torch.minimum(centres.clamp(min=0), lengths[:, None] - 1.0)
    places = starts[:, None] + inside
    return (1 - (places[:, :, None] - torch.arange(size)).abs()).clamp(min=0)
