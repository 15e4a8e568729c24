"""DeepInv (DeepInversion, Adaptive DeepInversion): pixels optimised from noise, no generator.

Yin et al., "Dreaming to Distill: Data-Free Knowledge Transfer via DeepInversion", CVPR 2020.
A call starts from Gaussian noise in normalised space and optimises the pixels until the teacher
sees target classes in them and its BatchNorm layers see the statistics of their training data.
With a student there is a competition term, which pushes teacher and student apart.

Where this differs from public code, on purpose:

- The best batch is a copy. There it is an alias, which Adam and the clamp go on changing, so
  that the last batch is kept whatever its loss; or a copy taken after the update, which is not
  the batch whose loss was lowest.
- Only batches of full resolution can win. There one of the low-resolution stage can.
- The competition is the textbook's JS, by log-softmax. There the arguments of both divergences
  are swapped and probabilities clamped to [0.01, 0.99]; ``js_floor`` brings the clamp back.
- No term of the student's BatchNorm statistics: neither the paper nor the authors have one.
- The priors look at what the teacher looks at, as the authors' ImageNet code does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive, refuse
from kdci.models import PixelModel
from kdci.substitution.base import SourceContext
from kdci.substitution.block import CallsBlock
from kdci.synthesis.image_priors import jitter, mean_norm, total_variation
from kdci.synthesis.inversion import BatchNormStatistics, BestBatch, InversionSource
from kdci.training.losses import bn_statistics_loss, competition, weighted_sum
from kdci.training.optimizers import Adam, set_gradients
from kdci.training.schedules import learning_rate_factor, scale_learning_rates

# Side of the average pool of the low-resolution stage.
_POOLING = 2


class DeepInv(CallsBlock):
    """DeepInversion, adaptive (CVPR 2020); the defaults are those of CMI's and Fast's comparisons.

    Those took 200 batches without a student, one an epoch. On ImageNet the authors take 2000
    steps at low resolution and then 1000, and a `first_bn_factor` of 10.
    """

    needs_batch_norm: ClassVar[bool] = True
    part_counts: ClassVar[Mapping[str, int]] = {"num_steps": 1, "low_resolution_steps": 0}

    num_steps: Count = 1000
    """Steps a call at full resolution (K)."""
    low_resolution_steps: Annotated[int, Field(ge=0)] = 0
    """Steps before these through a 2 x 2 average pool, with an Adam and a schedule of their own."""
    learning_rate: Positive = 0.1
    """Adam's rate, in normalised space."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Adam's first beta."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Adam's second beta."""
    learning_rate_schedule: Literal["constant", "cosine"] = "constant"
    """`constant`, or `cosine` to 0 over each stage."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up of the learning rate at the start of each stage."""
    bn_weight: NonNegative = 10.0
    """Weight of R_bn; 0: it is not computed."""
    first_bn_factor: Positive = 1.0
    """On the first BatchNorm layer's share of R_bn."""
    one_hot_weight: NonNegative = 1.0
    """Weight of the cross-entropy to the targets."""
    adversarial_weight: NonNegative = 1.0
    """Of the competition with the student; 0: plain DeepInversion, and the student is not run."""
    js_temperature: Positive = 3.0
    """T of the competition."""
    js_floor: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Clamp of the competition's probabilities; 0.01 in the public code."""
    tv_l1_weight: NonNegative = 0.0
    """Weight of the mean absolute differences of neighbouring pixels."""
    tv_l2_weight: NonNegative = 0.0
    """Weight of the L2 norms of those differences."""
    l2_weight: NonNegative = 0.0
    """Weight of the images' mean L2 norm."""
    jitter_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.125
    """Largest roll of a step, as a share of the side the teacher sees; mirrored too, where the
    dataset allows."""
    warmup_calls: Count = 200
    """Calls without a student: the pool of the substitute stage."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.lr_warmup_steps >= self.num_steps:
            refuse("lr_warmup_steps", f"has to be shorter than the {self.num_steps} steps")
        return self

    def source(self, context: SourceContext) -> DeepInvSource:
        """Build the source; see the base class."""
        return DeepInvSource(context, self)

    def scaled(self, budget: float) -> Self:
        """Scale a call's phases with its steps, of which they keep their shares."""
        scaled = super().scaled(budget)
        share = scaled.num_steps / self.num_steps
        update = {
            "low_resolution_steps": round(self.low_resolution_steps * share),
            "lr_warmup_steps": min(round(self.lr_warmup_steps * share), scaled.num_steps - 1),
        }
        return scaled.model_copy(update=update)


class DeepInvSource(InversionSource):
    """Substitution images by DeepInv; see the module's docstring and ``BankSource``.

    Pixels start anew at each call: nothing else goes on. Of the terms ``tv`` is weighted, by its
    two weights.

    Args:
        context: Teacher, dataset, bank and seed.
        params: The method's values.

    Raises:
        UserError: The teacher has no BatchNorm statistics to invert.
        ValueError: Images of an odd size can not be halved.
    """

    method = "deepinv"
    params: DeepInv

    def __init__(self, context: SourceContext, params: DeepInv) -> None:
        if params.low_resolution_steps and context.spec.image_size % _POOLING:
            raise ValueError("deepinv needs an even image size to halve")
        super().__init__(context, params)
        self.weights["tv"] = 1.0

    def invert(self, student: PixelModel | None) -> tuple[Tensor, dict[str, float]]:
        """Optimise pixels from noise."""
        context, spec = self.context, self.context.spec
        shape = (self.params.batch_size, spec.channels, spec.image_size, spec.image_size)
        pixels = torch.randn(shape, generator=self.random).to(context.device).requires_grad_()
        targets = self.targets().sort().values.to(context.device)
        mean, std = context.teacher.mean, context.teacher.std
        black, white = -mean / std, (1 - mean) / std
        betas = (self.params.beta1, self.params.beta2)
        best = BestBatch(self.method)
        for pooling, num_steps in (
            (_POOLING, self.params.low_resolution_steps),
            (1, self.params.num_steps),
        ):
            optimizer = Adam([pixels], lr=self.params.learning_rate, betas=betas)
            for step in range(num_steps):
                readings = self._readings(self._view(pixels, pooling), targets, student)
                if pooling == 1:
                    best.offer(readings, images=pixels * std + mean)
                set_gradients(readings["inversion_loss"], [pixels])
                scale_learning_rates(optimizer, self._rate_factor(step, num_steps))
                optimizer.step()
                with torch.no_grad():
                    pixels.clamp_(black, white)
        kept, metrics = best.result()
        return kept["images"], metrics

    def _rate_factor(self, step: int, num_steps: int) -> float:
        """Return the factor on the learning rate at a step of a stage."""
        warmup = self.params.lr_warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        return learning_rate_factor(
            self.params.learning_rate_schedule, step=step - warmup, num_steps=num_steps - warmup
        )

    def _view(self, pixels: Tensor, pooling: int) -> Tensor:
        """Return what this step looks at: pooled, shifted and perhaps mirrored pixels."""
        # Pooled first, so that the shift is the same share of a smaller picture.
        pooled = F.avg_pool2d(pixels, pooling) if pooling > 1 else pixels
        return jitter(
            pooled,
            fraction=self.params.jitter_fraction,
            flip=self.context.spec.flip,
            generator=self.random,
        )

    def _readings(
        self, view: Tensor, targets: Tensor, student: PixelModel | None
    ) -> dict[str, Tensor]:
        """Return the terms for a view in normalised space, and their weighted sum."""
        teacher = self.context.teacher
        images = view * teacher.std + teacher.mean
        with self.reading() as statistics:
            logits = teacher(images).logits
            zero = logits.new_zeros(())
            bn = zero if statistics is None else self._bn_loss(statistics)
        terms = {
            "bn": bn,
            "one_hot": F.cross_entropy(logits, targets),
            "adversarial": zero
            if student is None
            else competition(
                student(images).logits, logits, self.params.js_temperature, self.params.js_floor
            ),
            "tv": total_variation(
                view, l1_weight=self.params.tv_l1_weight, l2_weight=self.params.tv_l2_weight
            ),
            "l2": mean_norm(view) if self.weights["l2"] > 0 else zero,
        }
        return {"inversion_loss": weighted_sum(terms, self.weights), **terms}

    def _bn_loss(self, statistics: BatchNormStatistics) -> Tensor:
        compared = statistics.compared
        first = bn_statistics_loss(*(layers[:1] for layers in compared))
        return bn_statistics_loss(*compared) + (self.params.first_bn_factor - 1) * first
