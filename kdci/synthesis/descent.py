"""Gradients of a loss for some leaves alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def set_gradients(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    """Set the gradient of each leaf, replacing what it had; no other leaf receives any.

    What only other leaves' gradients would need is not computed.

    Args:
        loss: A scalar that depends on every leaf.
        leaves: Parameters, or other tensors that require gradient.
    """
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        leaf.grad = gradient
