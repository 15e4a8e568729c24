"""Uniform noise: a control and no method, what any substitution has to beat.

Every pixel is drawn evenly from [0, 1]. The DAFL paper (Chen et al., ICCV 2019) reports the same
control: 14.89 % on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kdci.methods.bank_source import BankSource
from kdci.methods.base import SoftLabelCriterion, SourceContext, StudentCriterion
from kdci.models import PixelModel

_BATCH = 256


class NoiseSource(BankSource):
    """A pool of uniform noise; see ``SubstitutionSource``.

    Args:
        context: Dataset, bank and seed; the teacher is not asked.
        num_images: Images in the pool, at least 2.
        temperature: T of the student's soft-label loss.

    Raises:
        ValueError: ``num_images`` is too small.
    """

    def __init__(
        self, context: SourceContext, *, num_images: int = 5000, temperature: float = 4.0
    ) -> None:
        if num_images < 2:
            raise ValueError(f"num_images must be at least 2, got {num_images}")
        super().__init__(context)
        self.num_images = num_images
        self.temperature = temperature

    @property
    def num_preparations(self) -> int:
        """The parts the pool is drawn in."""
        return -(-self.num_images // _BATCH)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Draw the pool; see the protocol."""
        spec = self.context.spec
        while len(self.bank) < self.num_images:
            size = min(_BATCH, self.num_images - len(self.bank))
            shape = (size, spec.channels, spec.image_size, spec.image_size)
            self.bank.append(torch.rand(shape, generator=self.random))
            yield {"bank": float(len(self.bank))}

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Do nothing: noise does not depend on the student."""
        return {}

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss."""
        return SoftLabelCriterion(self.temperature)
