"""The generators of the data-free methods, and the rule that re-initialises them.

All upsample by nearest neighbours and start from PyTorch's default initialisation. They are
meant to stay in train mode, also when sampled from: batch statistics are part of them. Images,
and what makes them of the last convolution, have the latents' type, whatever that computes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdci.models.generators.generating import BesideTeacher
from kdci.models.generators.upsampled_convolution import upsampled_convolution

SLOPE = 0.2
"""Negative slope of every leaky ReLU here."""
ADAM_BETAS = (0.5, 0.999)
"""What every method trains its generator with."""


class _UpsamplingBlock(nn.Sequential):
    """Up x2-Conv3x3-BN-LeakyReLU, of which the first two are computed as one."""

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2H, 2W)."""
        _upsampling, convolution, *others = self
        assert isinstance(convolution, nn.Conv2d)
        maps = upsampled_convolution(maps_BCHW, convolution.weight, convolution.bias)
        for layer in others:
            maps = layer(maps)
        return maps


def _block(
    in_width: int, out_width: int, *, bias: bool = False, eps: float = 1e-5
) -> _UpsamplingBlock:
    return _UpsamplingBlock(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(in_width, out_width, 3, padding=1, bias=bias),
        nn.BatchNorm2d(out_width, eps=eps),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


class LatentGenerator(BesideTeacher):
    """A linear layer, then two upsampling blocks up to the image.

    Attributes:
        linear: Latent to the first feature map.
        norm: BatchNorm of the first feature map.

    Args:
        latent_dim: Length Z of a latent.
        image_size: Height and width of the images in pixels, a multiple of 4.
        channels: Number of image channels C.
        width: Channels before the last convolution; the field calls it ngf.
        start_width: Channels of the first feature map.
        block_options: Of the blocks' layers.
        ending: What makes images of the last convolution.

    Raises:
        ValueError: If ``image_size`` is no positive multiple of 4.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        image_size: int,
        channels: int,
        width: int,
        start_width: int,
        ending: Sequence[nn.Module],
        **block_options: Any,
    ) -> None:
        super().__init__()
        start_size, rest = divmod(image_size, 4)
        if rest or start_size < 1:
            raise ValueError(f"image_size must be a multiple of 4, got {image_size}")
        self.start_shape = (start_width, start_size, start_size)
        self.linear = nn.Linear(latent_dim, start_width * start_size**2)
        self.norm = nn.BatchNorm2d(start_width)
        self.blocks = nn.Sequential(
            _block(start_width, 2 * width, **block_options),
            _block(2 * width, width, **block_options),
        )
        self.to_image = nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), *ending)

    def latents(self, size: int, random: torch.Generator) -> Tensor:
        """Return normal latents (size, Z), drawn on the CPU from ``random``, on its own device."""
        latents_BZ = torch.randn(size, self.linear.in_features, generator=random)
        return latents_BZ.to(self.linear.weight.device)

    def forward(self, latents_BZ: Tensor) -> Tensor:
        """Map latents (B, Z) to images, shape (B, C, H, W), on the scale of the last layer."""
        with self.arithmetic.autocast(latents_BZ.device):
            maps = self.linear(latents_BZ).unflatten(1, self.start_shape)
            maps = self.blocks(self.norm(self.arithmetic.lay_out(maps)))
            colours = self.to_image[0](maps)
        images: Tensor = colours.to(latents_BZ.dtype)
        for layer in self.to_image[1:]:
            images = layer(images)
        return images


class Generator(LatentGenerator):
    """G-small and G-large; images are in [0, 1].

    G-small is the generator of Fast, CMI and the DAFL of Fast-Datafree; G-large, which
    starts from twice the width, that of MosaicKD.

    Args:
        large: Whether to start from 4 times the width (G-large) instead of 2 (G-small).
        width: See the base class, as for all others.
        options: See there.
    """

    def __init__(self, *, width: int = 64, large: bool = False, **options: Any) -> None:
        start_width = width * (4 if large else 2)
        super().__init__(width=width, start_width=start_width, ending=[nn.Sigmoid()], **options)


class DaflGenerator(LatentGenerator):
    """G-DAFL, the generator of the original DAFL (Chen et al., ICCV 2019, authors' code).

    Its images are *normalised*, not in [0, 1]: tanh and a last BatchNorm without weights
    give them zero mean and unit variance over the batch, unbounded, and the authors feed
    them to the teacher as they are. Whoever keeps them takes them back to pixels with the
    dataset's mean and deviation.
    """

    # The authors pass 0.8 as BatchNorm's second positional argument. That is eps; momentum
    # was perhaps meant, but the published results were made with this.
    BLOCK_EPS = 0.8

    def __init__(
        self, *, latent_dim: int = 1000, channels: int, width: int = 64, **options: Any
    ) -> None:
        super().__init__(
            latent_dim=latent_dim,
            channels=channels,
            width=width,
            start_width=2 * width,
            ending=[nn.Tanh(), nn.BatchNorm2d(channels, affine=False)],
            bias=True,
            eps=self.BLOCK_EPS,
            **options,
        )


def reset_parameters_(module: nn.Module, generator: torch.Generator) -> None:
    """Re-initialise a generator, or one of its layers, by the rule of CMI and Fast.

    Convolution and linear weights are drawn from N(0, 0.02^2), BatchNorm weights from
    N(1, 0.02^2); biases become 0. Running statistics stay: generators never use them.

    Args:
        module: Changed in place, with all modules below it. It may be on any device: the
            numbers are drawn on the CPU, so that they do not depend on it.
        generator: CPU random stream to draw from, in the order of ``module.modules()``.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            centre = 0.0
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            centre = 1.0
        else:
            continue
        with torch.no_grad():
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(centre + 0.02 * noise)
            if layer.bias is not None:
                layer.bias.zero_()
