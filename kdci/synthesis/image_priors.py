"""What natural images look like, for methods that optimise pixels without a generator.

Smooth, of moderate size, and the same picture a few pixels to the side. From DeepInversion
(Yin et al., CVPR 2020), which optimises pixels in normalised space: the values below are then
in units of a channel's standard deviation.

Legend: B batch, C channels, H and W image height and width, at least 2 for the variations.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _neighbour_differences(images_BCHW: Tensor) -> list[Tensor]:
    """Return the differences of pixels to the right, below, and along the two diagonals."""
    return [
        images_BCHW[..., :, 1:] - images_BCHW[..., :, :-1],
        images_BCHW[..., 1:, :] - images_BCHW[..., :-1, :],
        images_BCHW[..., 1:, 1:] - images_BCHW[..., :-1, :-1],
        images_BCHW[..., 1:, :-1] - images_BCHW[..., :-1, 1:],
    ]


def total_variation(images_BCHW: Tensor, *, l1_weight: float, l2_weight: float) -> Tensor:
    """Return the weighted sum of two total variations, each a sum over the four directions.

    Args:
        images_BCHW: Float, (B, C, H, W).
        l1_weight: Of the mean absolute difference; 0: not computed.
        l2_weight: Of the L2 norm of all the differences; 0: not computed. One norm for the whole
            batch, not one an image: it grows with the square root of the number of pixels, and
            the authors' weights count on that.
    """
    total = images_BCHW.new_zeros(())
    measures = ((l1_weight, lambda d: d.abs().mean()), (l2_weight, torch.linalg.vector_norm))
    for weight, measure in measures:
        if weight > 0:
            differences = _neighbour_differences(images_BCHW)
            total = total + weight * torch.stack([measure(d) for d in differences]).sum()
    return total


def mean_norm(images_BCHW: Tensor) -> Tensor:
    """Return the L2 norm of an image, mean over the batch.

    Args:
        images_BCHW: Float, (B, C, H, W).
    """
    norms_B: Tensor = torch.linalg.vector_norm(images_BCHW.flatten(1), dim=1)
    return norms_B.mean()


def jitter(
    images_BCHW: Tensor, *, fraction: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """Move the whole batch by the same few pixels, wrapping around; perhaps mirror it.

    Args:
        images_BCHW: (B, C, H, W), any dtype, any device; gradients pass through.
        fraction: The shift is uniform among the whole pixels up to this share of the side,
            either way, drawn for rows and for columns.
        flip: Whether to mirror the batch left to right with probability 1/2.
        generator: A CPU generator, wherever the images are.

    Returns:
        (B, C, H, W), same dtype and device.
    """
    shifts = []
    for side in images_BCHW.shape[2:]:
        limit = int(fraction * side)
        shifts.append(int(torch.randint(-limit, limit + 1, (), generator=generator)))
    moved = torch.roll(images_BCHW, shifts, dims=(2, 3))
    if flip and bool(torch.randint(2, (), generator=generator)):
        return moved.flip(3)
    return moved
