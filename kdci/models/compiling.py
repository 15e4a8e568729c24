"""Networks made faster before their first step: folded, or translated by ``torch.compile``.

Translation takes tens of seconds, once for each shape of a batch, and pays in runs of hours. On
the CPU it needs a C++ compiler. Numbers differ from those of the plain network by rounding.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from kdci.models.folding import fold_batch_norms
from kdci.models.pixel_model import PixelModel


def for_predictions(
    model: PixelModel, image_size: int, *, folded: bool, compiled: bool
) -> PixelModel:
    """Return a frozen network for predictions alone.

    Args:
        model: In eval mode, frozen; stays as it is.
        image_size: Side of the images in pixels.
        folded: Whether its batch norms go into its convolutions.
        compiled: Whether it is translated: its batch size must not change, or it is anew.
    """
    if folded:
        model = fold_batch_norms(model, image_size)
    return compile_frozen(model) if compiled else model


def compile_frozen(model: PixelModel) -> PixelModel:
    """Return a copy of a frozen network that predicts faster.

    On the CPU weights become constants of the translated code, laid out for their kernels, with
    batch norms and activations fused into them. On CUDA the step is captured as a CUDA graph:
    untested, for want of a device.

    Args:
        model: In eval mode, frozen; stays as it is. Call the copy without gradient.

    Returns:
        The copy; it is translated at its first call.
    """
    on_cuda = model.mean.device.type == "cuda"
    how: dict[str, Any] = (
        {"mode": "reduce-overhead"} if on_cuda else {"options": {"freezing": True}}
    )
    compiled = torch.compile(model.backbone, dynamic=False, **how)
    return model.with_backbone(cast("nn.Module", compiled))


def compile_trained(model: PixelModel) -> None:
    """Translate a network that is trained, forward and backward, in place.

    The names of its parameters stay: a state dict is the same as before.
    """
    model.backbone.compile(dynamic=False)
