"""Random crops of scikit-learn's two bundled photographs: an open-world pool out of the box.

Two photographs are a badly shifted substitute for any dataset, which is the point.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn import functional as F

# Bounds the memory of the gathered corners: about 100 MB at 64 pixels.
CROPS_PER_CHUNK = 256


def photograph_crops(*, num_images: int, image_size: int, channels: int, seed: int) -> Tensor:
    """Draw square crops of random size and place, shrunk to one size by area averaging.

    Args:
        num_images: Number of crops M.
        image_size: Side in pixels of the result, and of the smallest crop; the largest is
            the photographs' shorter side.
        channels: 1 for grey, 3 for RGB.
        seed: Same seed, same crops.

    Returns:
        (M, C, H, W) uint8.

    Raises:
        ValueError: If the photographs are smaller than ``image_size``.
    """
    mode = "L" if channels == 1 else "RGB"
    photographs = np.stack(
        [np.asarray(Image.fromarray(p).convert(mode)) for p in load_sample_images().images]
    )
    num_photos, height, width = photographs.shape[:3]
    photos = torch.from_numpy(photographs).view(num_photos, height, width, channels)
    shorter = min(height, width)
    if image_size > shorter:
        raise ValueError(f"image_size must be at most {shorter}, got {image_size}")
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, num_photos, (num_images,), generator=generator)
    sides = torch.randint(image_size, shorter + 1, (num_images,), generator=generator)
    place = torch.rand((2, num_images), generator=generator, dtype=torch.float64)
    tops = (place[0] * (height - sides + 1)).floor()
    lefts = (place[1] * (width - sides + 1)).floor()
    return area_crops(photos.permute(0, 3, 1, 2), which, tops, lefts, sides, image_size=image_size)


def area_crops(
    photos: Tensor, which: Tensor, tops: Tensor, lefts: Tensor, sides: Tensor, *, image_size: int
) -> Tensor:
    """Average square crops exactly over the area of each output pixel.

    The integral of an image of constant pixels is bilinear between its corner sums, so four
    look-ups in a summed-area table give any output pixel, whatever the crop's size.

    Args:
        photos: (P, C, H, W) uint8.
        which: (M,) int64, the photograph of each crop.
        tops: (M,) first row of each crop.
        lefts: (M,) first column.
        sides: (M,) side of each crop in pixels.
        image_size: Side S of the result in pixels.

    Returns:
        (M, C, S, S) uint8, rounded.
    """
    table_PCHW = F.pad(photos.double(), (1, 0, 1, 0)).cumsum(2).cumsum(3)
    steps = torch.arange(image_size + 1, dtype=torch.float64) / image_size
    crops = torch.empty((len(which), photos.shape[1], image_size, image_size), dtype=torch.uint8)
    for start in range(0, len(which), CROPS_PER_CHUNK):
        rows = slice(start, start + CROPS_PER_CHUNK)
        spans = sides[rows, None] * steps
        ys, xs = tops[rows, None] + spans, lefts[rows, None] + spans
        areas = (sides[rows].double() / image_size).square()[:, None, None]
        for channel in range(photos.shape[1]):
            corner_sums = _integral(table_PCHW[:, channel], which[rows], ys, xs)
            means = corner_sums.diff(dim=1).diff(dim=2).div_(areas)
            crops[rows, channel] = means.round_().clamp_(0, 255).to(torch.uint8)
    return crops


def _integral(table: Tensor, which: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Interpolate summed-area tables (P, H+1, W+1) at (B, E) edges into (B, E, E)."""
    height, width = table.shape[1:]
    y0 = ys.floor().long().clamp(max=height - 2)
    x0 = xs.floor().long().clamp(max=width - 2)
    fy, fx = (ys - y0)[:, :, None], (xs - x0)[:, None, :]
    corner = (which[:, None, None] * height + y0[:, :, None]) * width + x0[:, None, :]
    # Flat look-ups: five times as fast as indexing with three tensors.
    flat = table.flatten()
    upper = torch.lerp(flat.take(corner), flat.take(corner + 1), fx)
    lower = torch.lerp(flat.take(corner + width), flat.take(corner + width + 1), fx)
    return torch.lerp(upper, lower, fy)
