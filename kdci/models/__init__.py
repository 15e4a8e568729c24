"""Backbones, generators, and the ``PixelModel`` that every image passes through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from kdci.catalog import DatasetSpec
from kdci.models.pixel_model import PixelModel
from kdci.models.prediction import Prediction
from kdci.models.resnet import BLOCKS_PER_STAGE, ResNet
from kdci.models.vgg import Vgg11
from kdci.models.wide_resnet import WideResNet

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet-18": partial(ResNet, BLOCKS_PER_STAGE[18]),
    "resnet-34": partial(ResNet, BLOCKS_PER_STAGE[34]),
    "vgg-11": Vgg11,
    "wrn-10-1": partial(WideResNet, 10, 1),
    "wrn-16-1": partial(WideResNet, 16, 1),
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-1": partial(WideResNet, 40, 1),
    "wrn-40-2": partial(WideResNet, 40, 2),
}

__all__ = [
    "BACKBONES",
    "PixelModel",
    "Prediction",
    "build_backbone",
    "build_pixel_model",
]


def build_backbone(name: str, *, num_classes: int, channels: int) -> nn.Module:
    """Return a freshly initialised backbone; weights come from torch's global RNG.

    Args:
        name: Key of ``BACKBONES``.
        num_classes: Number of classes K.
        channels: Number of image channels C.

    Returns:
        A module that maps normalised images (B, C, H, W) to a ``Prediction``.

    Raises:
        ValueError: If there is no backbone of that name.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    return BACKBONES[name](num_classes=num_classes, channels=channels)


def build_pixel_model(
    name: str,
    spec: DatasetSpec,
    *,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> PixelModel:
    """Return a freshly initialised classifier of ``spec``'s images in [0, 1].

    Args:
        name: Key of ``BACKBONES``.
        spec: Dataset whose classes, channels and normalisation the model takes.
        autocast_dtype: Type to run the backbone in, see ``PixelModel``.
        channels_last: Whether to store the backbone's weights channels-last.

    Raises:
        ValueError: If there is no backbone of that name.
    """
    backbone = build_backbone(name, num_classes=spec.num_classes, channels=spec.channels)
    if channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    return PixelModel(backbone, mean=spec.mean, std=spec.std, autocast_dtype=autocast_dtype)
