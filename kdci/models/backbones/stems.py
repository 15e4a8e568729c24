"""The two first layers a ResNet may have: for small images and for photographs."""

from __future__ import annotations

from torch import nn

from kdci.config.catalog import STEMS

WIDTH = 64
"""Channels that a ResNet's first convolution gives."""


def require_stem(stem: str) -> None:
    """Refuse a stem that does not exist.

    Raises:
        ValueError: If ``stem`` is none of ``STEMS``.
    """
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")


def stem_convolution(channels: int, stem: str) -> nn.Conv2d:
    """Return a ResNet's first convolution, with PyTorch's default initialisation.

    Args:
        channels: Number of image channels C.
        stem: ``cifar``: 3x3 of stride 1; ``imagenet``: 7x7 of stride 2.

    Raises:
        ValueError: If there is no such stem.
    """
    require_stem(stem)
    if stem == "cifar":
        return nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False)
    return nn.Conv2d(channels, WIDTH, 7, stride=2, padding=3, bias=False)


def stem_pooling(stem: str) -> nn.Module:
    """Return what follows a ResNet's first activation: nothing, or 3x3 max-pooling of stride 2.

    Raises:
        ValueError: If there is no such stem.
    """
    require_stem(stem)
    return nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
