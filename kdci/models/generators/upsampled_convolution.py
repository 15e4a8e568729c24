"""Convolution of a feature map that was enlarged twofold, without enlarging it.

After nearest-neighbour upsampling most of the nine pixels under a 3x3 kernel are equal. Each output
pixel is a sum over four pixels of the small map, weighted by sums of the kernel's entries: what a
transposed convolution of stride 2 computes, with the kernel (*) a 2x2 square of ones. That takes
4/9 of the multiplications, and no large map has to be kept for the backward pass (Shi et al., "Is
the deconvolution layer the same as a convolutional layer?", 2016).

Legend: B batch, I and O input and output channels, H and W height and width of the small map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TAPS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
"""Along one axis: which of the kernel's 3 entries make up each of the 4, from the other end."""


def upsampled_convolution(
    maps_BIHW: Tensor, weight_OI33: Tensor, bias_O: Tensor | None = None
) -> Tensor:
    """Return ``conv2d(interpolate(maps, scale_factor=2), weight, bias, padding=1)``.

    Args:
        maps_BIHW: Floating point, (B, I, H, W).
        weight_OI33: Of the convolution, (O, I, 3, 3).
        bias_O: Of the convolution, (O,); None: there is none.

    Returns:
        (B, O, 2H, 2W); equal up to rounding, and so are its gradients.
    """
    # One matrix product: pooling the kernel, or adding its shifts, took four to eight times longer.
    with torch.autocast(weight_OI33.device.type, enabled=False):
        taps = torch.kron(_TAPS, _TAPS).to(weight_OI33)
        kernel_OI44 = (weight_OI33.flatten(2) @ taps.T).view(*weight_OI33.shape[:2], 4, 4)
    return F.conv_transpose2d(maps_BIHW, kernel_OI44.transpose(0, 1), bias_O, stride=2, padding=1)
