"""The networks of the baselines: the layers of the project's, in the plainest form."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Pre-activation block; a 1x1 shortcut of the activated input where the widths differ."""

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = None
        if in_width != out_width:
            self.convShortcut = nn.Conv2d(in_width, out_width, 1, stride, 0, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_width, H, W) to (B, out_width, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(maps))
        hidden = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        shortcut = maps if self.convShortcut is None else self.convShortcut(activated)
        return torch.add(shortcut, hidden)


class WideResNet(nn.Module):
    """WRN-d-k; returns logits (B, K) and features (B, D)."""

    def __init__(self, depth: int, widen_factor: int, num_classes: int) -> None:
        super().__init__()
        num_blocks = (depth - 4) // 6
        widths = [16, *(16 * 2**stage * widen_factor for stage in range(3))]
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for stage in range(3):
            blocks = [
                WideBlock(
                    widths[stage] if index == 0 else widths[stage + 1],
                    widths[stage + 1],
                    2 if stage and index == 0 else 1,
                )
                for index in range(num_blocks)
            ]
            layers = nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks)))
            self.add_module(f"block{stage + 1}", layers)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify normalised images, (B, C, H, W)."""
        maps = self.conv1(images)
        for stage in (1, 2, 3):
            maps = self.get_submodule(f"block{stage}")(maps)
        maps = F.relu(self.bn1(maps))
        features = F.adaptive_avg_pool2d(maps, 1).flatten(1)
        return self.fc(features), features


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, in_width: int, out_width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, out_width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_width)
        self.conv2 = nn.Conv2d(out_width, out_width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_width)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_width != out_width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, out_width, 1, stride, bias=False), nn.BatchNorm2d(out_width)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_width, H, W) to (B, out_width, H / stride, W / stride)."""
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps)))))
        hidden += self.shortcut(maps)
        return F.relu(hidden)


class ResNet(nn.Module):
    """ResNet of basic blocks with the CIFAR stem; returns logits (B, K) and features (B, D)."""

    def __init__(self, blocks_per_stage: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = 64
        for stage, num_blocks in enumerate(blocks_per_stage):
            out_width = 64 * 2**stage
            blocks = []
            for index in range(num_blocks):
                blocks.append(BasicBlock(width, out_width, 2 if stage and index == 0 else 1))
                width = out_width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classify normalised images, (B, C, H, W)."""
        maps = F.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3, 4):
            maps = self.get_submodule(f"layer{stage}")(maps)
        features = F.adaptive_avg_pool2d(maps, 1).flatten(1)
        return self.linear(features), features


def classifier(name: str, num_classes: int = 10) -> nn.Module:
    """Return a freshly initialised ``wrn-D-K``, ``resnet-18`` or ``resnet-34``.

    Raises:
        ValueError: It is none of these.
    """
    kind, *numbers = name.split("-")
    if kind == "wrn":
        depth, widen_factor = map(int, numbers)
        return WideResNet(depth, widen_factor, num_classes)
    blocks = {"resnet-18": (2, 2, 2, 2), "resnet-34": (3, 4, 6, 3)}
    if name not in blocks:
        raise ValueError(f"no baseline for {name!r}, only wrn-D-K, {', '.join(blocks)}")
    return ResNet(blocks[name], num_classes)


class Generator(nn.Module):
    """G-small of Fast, CMI and DAFL, or G-large of MosaicKD; latents (B, Z) to images in [0, 1]."""

    def __init__(self, latent_dim: int, *, image_size: int = 32, large: bool = False) -> None:
        super().__init__()
        self.start_size, width = image_size // 4, 256 if large else 128
        self.width = width
        self.linear = nn.Linear(latent_dim, width * self.start_size**2)
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 128, 3, 1, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, 1, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(64, 3, 3, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W)."""
        maps = self.linear(latents).view(len(latents), self.width, self.start_size, self.start_size)
        images: Tensor = self.blocks(maps)
        return images


class PatchDiscriminator(nn.Sequential):
    """MosaicKD's: logits of being real, (B, 1, H / 4, W / 4), of normalised images."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 128, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(128, 256, 4, 2, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(256, 1, 1, bias=False),
        )


class ProjectionHead(nn.Module):
    """CMI's: features (B, d) to unit vectors (B, P)."""

    def __init__(self, num_features: int, projection_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, num_features),
            nn.ReLU(inplace=True),
            nn.Linear(num_features, projection_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project and normalise."""
        return F.normalize(self.layers(features), dim=1)


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's weights are."""
    return next(network.parameters()).device


class Normalizer:
    """Images in [0, 1] to the scale the teacher was trained on."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, images: Tensor) -> Tensor:
        """Return (images - mean) / std."""
        mean = torch.tensor(self.mean, device=images.device)[None, :, None, None]
        std = torch.tensor(self.std, device=images.device)[None, :, None, None]
        return (images - mean) / std
