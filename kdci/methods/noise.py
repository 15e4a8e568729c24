"""Noise: a control and no method, uniform pixels, what any substitution has to beat.

Every pixel is drawn evenly from [0, 1]. The DAFL paper (Chen et al., ICCV 2019) reports the same
control: 14.89 % on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

from kdci.config.block import Positive
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.block import BatchSize, MethodBlock

_BATCH = 256


class Noise(MethodBlock):
    """Uniform noise, a control."""

    is_control: ClassVar[bool] = True

    num_images: BatchSize = 5000
    """Images in the pool."""
    temperature: Positive = 4.0
    """T of the student's soft-label loss."""

    def source(self, context: SourceContext) -> NoiseSource:
        """Build the source; see the base class."""
        return NoiseSource(context, self)

    @property
    def num_pool_images(self) -> int:
        """All of them."""
        return self.num_images


class NoiseSource(BankSource):
    """A pool of uniform noise, which asks neither teacher nor student; see ``BankSource``."""

    params: Noise

    @property
    def num_preparations(self) -> int:
        """The parts the pool is drawn in."""
        return -(-self.params.num_images // _BATCH)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Draw the pool; see the base class."""
        spec = self.context.spec
        while len(self.bank) < self.params.num_images:
            size = min(_BATCH, self.params.num_images - len(self.bank))
            shape = (size, spec.channels, spec.image_size, spec.image_size)
            self.bank.append(torch.rand(shape, generator=self.random))
            yield {"bank": float(len(self.bank))}
