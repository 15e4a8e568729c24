"""A backbone that takes images in [0, 1]: normalisation, precision and memory format inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Prediction(NamedTuple):
    """A classifier's answer to a batch of images.

    Attributes:
        logits: Unnormalised class scores, shape (B, K).
        features: Penultimate features, the input of the last linear layer, shape (B, D).
    """

    logits: Tensor
    features: Tensor


class PixelModel(nn.Module):
    """Backbone plus the mean and standard deviation its images were normalised with.

    Real, synthetic and sampled images all pass through here, so all meet the same
    normalisation. Mean and standard deviation are facts of the dataset, not weights: they
    stay out of the state dict, which holds ``backbone.*`` alone.

    Args:
        backbone: Maps normalised images (B, C, H, W) to a ``Prediction``.
        mean: Per-channel mean on the [0, 1] scale, length C.
        std: Per-channel standard deviation on the [0, 1] scale, length C, positive.
        autocast_dtype: Type to run the backbone's matrix products in, such as
            ``torch.bfloat16``; ``None`` keeps them in float32, also inside a caller's
            autocast region.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, or a deviation is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(deviation > 0 for deviation in std):
            raise ValueError(
                "mean and std must have one entry per channel and std must be positive, "
                f"got {tuple(mean)} and {tuple(std)}"
            )
        self.backbone = backbone
        self.autocast_dtype = autocast_dtype
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, images_BCHW: Tensor) -> Prediction:
        """Classify images in [0, 1].

        Args:
            images_BCHW: Floating-point images in [0, 1], shape (B, C, H, W).

        Returns:
            Logits (B, K) and penultimate features (B, D), both float32.

        Raises:
            ValueError: If the images have another number of channels than ``mean``, which
                broadcasting would hide, or are integers, which are not in [0, 1].
        """
        if images_BCHW.shape[1] != self.mean.shape[1] or not images_BCHW.is_floating_point():
            raise ValueError(
                f"images must be floating point with {self.mean.shape[1]} channels, "
                f"got {images_BCHW.dtype} of shape {tuple(images_BCHW.shape)}"
            )
        normalised = (images_BCHW - self.mean) / self.std
        if is_channels_last(self.backbone):
            normalised = normalised.contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            images_BCHW.device.type,
            dtype=self.autocast_dtype,
            enabled=self.autocast_dtype is not None,
        ):
            logits_BK, features_BD = self.backbone(normalised)
        return Prediction(logits_BK.float(), features_BD.float())

    def with_backbone(self, backbone: nn.Module) -> PixelModel:
        """Return a model of the same images, normalisation, precision and mode around another."""
        model = PixelModel(
            backbone,
            mean=self.mean.flatten().tolist(),
            std=self.std.flatten().tolist(),
            autocast_dtype=self.autocast_dtype,
        )
        model.training = self.training
        return model.to(self.mean.device)


def is_channels_last(module: nn.Module) -> bool:
    """Tell the memory format from the first convolution weight that has only one.

    A weight with one input channel or a 1x1 kernel is contiguous in both formats.
    """
    for weight in module.parameters():
        if weight.dim() == 4:
            channels_last = weight.is_contiguous(memory_format=torch.channels_last)
            if channels_last != weight.is_contiguous():
                return channels_last
    return False
