"""A frozen network with its batch norms folded into the convolutions before them.

In eval mode BatchNorm is y = (x - mean) / sqrt(var + eps) * weight + bias: per channel a factor
and a constant, which the convolution before it can apply as well. The network computes the same
function, up to rounding, with a pass less over each feature map. It has no such layers left to
read, so it is for predictions alone: what inverts batch statistics or reads features of layers
needs the network as it was.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdci.models.pixel_model import PixelModel

CLOSE = 1e-3
"""Of the largest logit: far above rounding, far below what a wrong graph would make of it."""


def fold_batch_norms(model: PixelModel, image_size: int) -> PixelModel:
    """Return a frozen copy of a classifier with every foldable BatchNorm folded.

    Foldable is what alone follows a convolution. Others stay: those that follow a sum, as the
    first of each block of a WideResNet.

    Args:
        model: In eval mode, frozen; stays as it is.
        image_size: Side of the images in pixels that the copy is compared with it on.

    Returns:
        The copy, or ``model`` itself where nothing is to be folded. Of a network whose code can
        not be traced, for it looks at the images' size, pairs within an ``nn.Sequential`` count.
        Where the copy's logits are others, as of layers that the code uses twice, ``model`` too.

    Raises:
        ValueError: If the model is in training mode: there BatchNorm uses the batch's statistics.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("only a model in eval mode can be folded")
    before = _count_batch_norms(model.backbone)
    try:
        folded = fuse(model.backbone)
    except (TraceError, NotImplementedError, TypeError, RuntimeError):
        folded = _fold_pairs(model.backbone)
    if _count_batch_norms(folded) == before or not _agree(model, folded, image_size):
        return model
    return model.with_backbone(folded.eval().requires_grad_(requires_grad=False))


@torch.no_grad()
def _agree(model: PixelModel, folded: nn.Module, image_size: int) -> bool:
    """Tell whether both compute the same of random images, in fp32."""
    random = torch.Generator().manual_seed(0)
    shape = (2, model.mean.shape[1], image_size, image_size)
    images = torch.randn(shape, generator=random).to(model.mean.device)
    wanted, found = model.backbone(images), folded(images)
    largest = float(wanted.logits.abs().max())
    return all(
        torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * largest)
        for one, other in zip(wanted, found, strict=True)
    )


def _fold_pairs(network: nn.Module) -> nn.Module:
    """Return a copy with the BatchNorms folded that follow a convolution in a sequence."""
    folded = copy.deepcopy(network)
    for sequence in [one for one in folded.modules() if isinstance(one, nn.Sequential)]:
        for before, after in pairwise(list(sequence.named_children())):
            (conv_name, conv), (norm_name, norm) = before, after
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence.register_module(conv_name, fuse_conv_bn_eval(conv, norm))
                sequence.register_module(norm_name, nn.Identity())
    return folded


def _count_batch_norms(module: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in module.modules())
