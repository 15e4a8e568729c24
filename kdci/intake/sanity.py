"""What can be told of an imported teacher without any data: its answers to noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kdci.config.catalog import DatasetSpec
from kdci.errors import NumericError, UserError
from kdci.models import PixelModel
from kdci.training.evaluation import class_proportions

_BATCH = 32
_LARGE = 64
"""Side in pixels from which on fewer images have to do."""


@dataclass(frozen=True)
class NoiseAnswers:
    """How a teacher classifies uniform noise.

    Attributes:
        num_images: How many images it saw.
        num_classes: How many classes it named.
        largest_share: Share of the class named most, in percent.
    """

    num_images: int
    num_classes: int
    largest_share: float


@torch.no_grad()
def answers_to_noise(model: PixelModel, spec: DatasetSpec, subject: str) -> NoiseAnswers:
    """Let a teacher classify uniform noise in [0, 1], the same at every call.

    Args:
        model: The teacher, in eval mode.
        spec: Facts of its images.
        subject: The file, for messages.

    Raises:
        UserError: The network does not take images of this size.
        NumericError: A logit is not finite.
    """
    num_images = 2 * _BATCH if spec.image_size > _LARGE else 8 * _BATCH
    generator = torch.Generator().manual_seed(0)
    shape = (_BATCH, spec.channels, spec.image_size, spec.image_size)
    logits = []
    for _ in range(num_images // _BATCH):
        images = torch.rand(shape, generator=generator)
        try:
            logits.append(model(images).logits)
        except (RuntimeError, ValueError) as error:
            what = f"does not take {spec.image_size} px: {str(error).splitlines()[0]}"
            raise UserError(subject, what, "give the --image-size it was trained on") from None
    logits_MK = torch.cat(logits)
    if not bool(torch.isfinite(logits_MK).all()):
        what = "its answers to noise are not finite"
        raise NumericError(subject, what, "check --mean and --std, or give an earlier checkpoint")
    shares_K = class_proportions(logits_MK.argmax(dim=1), spec.num_classes)
    return NoiseAnswers(num_images, int((shares_K > 0).sum()), 100 * float(shares_K.max()))


def is_at_chance(accuracy: float, *, num_classes: int, num_images: int) -> bool:
    """Tell whether an accuracy in percent is within three standard errors of guessing."""
    chance = 1 / num_classes
    return accuracy / 100 <= chance + 3 * math.sqrt(chance * (1 - chance) / num_images)
