"""The game of MosaicKD: a generator against a discriminator of patches, judged by a teacher.

Fang et al., "Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data", NeurIPS
2021, equations 3, 4 and 7 and the appendix's class balance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdci.errors import NumericError
from kdci.models import PixelModel
from kdci.models.generators.generating import BesideTeacher
from kdci.models.generators.generator import ADAM_BETAS, SLOPE, LatentGenerator
from kdci.models.states import Stateful
from kdci.synthesis.inversion import frozen
from kdci.training.losses import (
    class_balance,
    divergence,
    patch_loss,
    prediction_entropies,
    weighted_sum,
)
from kdci.training.optimizers import Adam, Moments, set_gradients
from kdci.training.schedules import scale_learning_rates


class PatchDiscriminator(BesideTeacher):
    """Tells real patches of 10 x 10 pixels, 4 pixels apart, from made ones.

    Two strided convolutions and a 1 x 1 one: each logit depends on one patch alone, so that a
    generator that fools it borrows local patterns, not whole foreign objects (MosaicKD: Fang et
    al., NeurIPS 2021). Meant to stay in train mode, in which BatchNorm also lets the batch's
    statistics into every logit.

    Args:
        channels: Number of image channels C.
        width: Channels after the first convolution; the field calls it ndf.
    """

    def __init__(self, *, channels: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(2 * width, 1, 1, bias=False),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Map normalised images (B, C, H, W) to logits of being real, (B, 1, H / 4, W / 4)."""
        with self.arithmetic.autocast(images_BCHW.device):
            logits_B1hw: Tensor = self.layers(self.arithmetic.lay_out(images_BCHW))
        return logits_B1hw.to(images_BCHW.dtype)


class PatchGame(Stateful):
    """Trains a generator and a discriminator against each other, a step at a time.

    Attributes:
        steps: Steps taken so far.

    Args:
        teacher: Frozen, in eval mode; the discriminator's images get its normalisation.
        generator: Maps latents to images in [0, 1]; stays in train mode.
        discriminator: Tells real patches from made ones; stays in train mode.
        learning_rate: Adam's rate of both.
        weights: Of the generator's terms `local`, `align`, `balance` and `adversarial`; that
            of `local` is the discriminator's, too.
    """

    kept = ("steps", "_nets", "_moments")

    def __init__(
        self,
        teacher: PixelModel,
        generator: LatentGenerator,
        discriminator: PatchDiscriminator,
        *,
        learning_rate: float,
        weights: Mapping[str, float],
    ) -> None:
        self.teacher = teacher
        self.generator = generator
        self.discriminator = discriminator
        self.weights = dict(weights)
        self.steps = 0
        self._nets = {"generator": generator, "discriminator": discriminator}
        self._optimizers = {
            name: Adam(net.parameters(), lr=learning_rate, betas=ADAM_BETAS)
            for name, net in self._nets.items()
        }
        self._moments = {name: Moments(each) for name, each in self._optimizers.items()}

    def step(
        self,
        latents_BZ: Tensor,
        real_BCHW: Tensor,
        student: PixelModel | None,
        *,
        rate_factor: float = 1.0,
    ) -> dict[str, float]:
        """Take one step of the discriminator, then one of the generator on the same images.

        Args:
            latents_BZ: Of the images to make.
            real_BCHW: As many real images in [0, 1], not augmented.
            student: The adversarial term is off without one; left as it was.
            rate_factor: On both initial learning rates.

        Returns:
            The unweighted terms ``discriminator``, ``local``, ``align``, ``balance`` and
            ``adversarial``, and the generator's weighted sum ``generator_loss``.

        Raises:
            NumericError: One of them is not finite.
        """
        for optimizer in self._optimizers.values():
            scale_learning_rates(optimizer, rate_factor)
        made = self.generator(latents_BZ)
        # Two passes: together, the two kinds would share BatchNorm's statistics.
        of_made = patch_loss(self._judge(made.detach()), real=False)
        discriminator = (of_made + patch_loss(self._judge(real_BCHW), real=True)) / 2
        _descend(self._optimizers["discriminator"], self.weights["local"] * discriminator)
        with frozen(*([self.teacher] if student is None else [self.teacher, student])):
            terms = self._generator_terms(made, student)
            total = weighted_sum(terms, self.weights)
            _descend(self._optimizers["generator"], total)
        self.steps += 1
        return self._readings(generator_loss=total, discriminator=discriminator, **terms)

    def _generator_terms(self, made: Tensor, student: PixelModel | None) -> dict[str, Tensor]:
        """Return the generator's unweighted terms; teacher and student are frozen."""
        logits = self.teacher(made).logits
        return {
            "local": patch_loss(self._judge(made), real=True),
            "align": prediction_entropies(logits).mean(),
            "balance": class_balance(logits, base=2),
            "adversarial": logits.new_zeros(())
            if student is None
            else -divergence(student(made).logits, logits),
        }

    def _judge(self, images_BCHW: Tensor) -> Tensor:
        """Return the discriminator's logits for images in [0, 1], (B, 1, h, w)."""
        normalised = (images_BCHW - self.teacher.mean) / self.teacher.std
        logits_B1hw: Tensor = self.discriminator(normalised)
        return logits_B1hw

    def _readings(self, **losses: Tensor) -> dict[str, float]:
        # One transfer for all of them: each one on its own would stall a GPU.
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        readings = dict(zip(losses, values, strict=True))
        for name, value in readings.items():
            if not math.isfinite(value):
                raise NumericError(
                    f"methods.mosaick, game step {self.steps}",
                    f"the term '{name}' is {value}",
                    "lower methods.mosaick.learning_rate",
                )
        return readings


def _descend(optimizer: Adam, loss: Tensor) -> None:
    """Step down the gradient of the optimiser's own weights; no other net receives any."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    set_gradients(loss, weights)
    optimizer.step()
    optimizer.zero_grad()
