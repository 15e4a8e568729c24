"""Backbones, generators, and the ``PixelModel`` that every image passes through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from kdci.config.catalog import FOREIGN_BACKBONE, STEMS, DatasetSpec
from kdci.errors import UserError
from kdci.models.backbones.foreign import build_foreign
from kdci.models.backbones.resnet import BLOCKS_PER_STAGE, ResNet
from kdci.models.backbones.torchvision_nets import build_mobilenetv2, build_resnet50
from kdci.models.backbones.vgg import Vgg11
from kdci.models.backbones.wide_resnet import WideResNet
from kdci.models.pixel_model import PixelModel, Prediction
from kdci.models.states import load_state

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "mobilenetv2": build_mobilenetv2,
    "resnet-18": partial(ResNet, BLOCKS_PER_STAGE[18]),
    "resnet-34": partial(ResNet, BLOCKS_PER_STAGE[34]),
    "resnet-50": build_resnet50,
    "vgg-11": Vgg11,
    "wrn-10-1": partial(WideResNet, 10, 1),
    "wrn-16-1": partial(WideResNet, 16, 1),
    "wrn-16-2": partial(WideResNet, 16, 2),
    "wrn-40-1": partial(WideResNet, 40, 1),
    "wrn-40-2": partial(WideResNet, 40, 2),
}

WITH_STEMS: frozenset[str] = frozenset({"mobilenetv2", "resnet-18", "resnet-34", "resnet-50"})
"""Backbones whose first layers can be chosen; the others were made with one."""

__all__ = [
    "BACKBONES",
    "PixelModel",
    "Prediction",
    "build_backbone",
    "build_pixel_model",
    "load_state",
    "outline_backbone",
]


def build_backbone(
    name: str,
    *,
    num_classes: int,
    channels: int,
    stem: str = "cifar",
    image_size: int | None = None,
) -> nn.Module:
    """Return a freshly initialised backbone; weights come from torch's global RNG.

    Args:
        name: Key of ``BACKBONES``, or ``torchvision-NAME`` or ``timm-NAME``.
        num_classes: Number of classes K.
        channels: Number of image channels C.
        stem: One of ``kdci.config.catalog.STEMS``; only those of ``WITH_STEMS`` have a choice.
        image_size: Side of the images in pixels, which some of another library's need and all
            of them are tried with.

    Returns:
        A module that maps normalised images (B, C, H, W) to a ``Prediction``.

    Raises:
        ValueError: If there is no backbone or no stem of that name.
        UserError: If another library's classifier is unknown or does not fit.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if FOREIGN_BACKBONE.fullmatch(name):
        return build_foreign(
            name, num_classes=num_classes, channels=channels, image_size=image_size
        )
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    chosen = {"stem": stem} if name in WITH_STEMS else {}
    return BACKBONES[name](num_classes=num_classes, channels=channels, **chosen)


def _backbone_for(name: str, spec: DatasetSpec, stem: str) -> nn.Module:
    classes, channels, size = spec.num_classes, spec.channels, spec.image_size
    return build_backbone(name, num_classes=classes, channels=channels, stem=stem, image_size=size)


def outline_backbone(name: str, spec: DatasetSpec, *, stem: str = "cifar") -> nn.Module:
    """Return a backbone's layers for ``spec``'s images; most have no memory for their weights.

    For questions about a network that is not going to be run.

    Args:
        name: See ``build_backbone``, as for the stem and for what is raised.
        spec: Dataset whose classes, channels and image size the network takes.
        stem: First layers of the backbone.
    """
    build = partial(_backbone_for, name, spec, stem)
    try:
        with torch.device("meta"):
            return build()
    except UserError:
        # Some constructors compute with numbers that they hold in tensors.
        with torch.random.fork_rng(devices=[]):
            return build()


def build_pixel_model(
    name: str,
    spec: DatasetSpec,
    *,
    stem: str = "cifar",
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> PixelModel:
    """Return a freshly initialised classifier of ``spec``'s images in [0, 1].

    Args:
        name: See ``build_backbone``, as for the stem and for what is raised.
        spec: Dataset whose classes, channels, image size and normalisation the model takes.
        stem: First layers of the backbone.
        autocast_dtype: Type to run the backbone in, see ``PixelModel``.
        channels_last: Whether to store the backbone's weights channels-last.
    """
    backbone = _backbone_for(name, spec, stem)
    if channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    return PixelModel(backbone, mean=spec.mean, std=spec.std, autocast_dtype=autocast_dtype)
