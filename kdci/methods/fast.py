"""Fast (FastDFKD): inversion through a meta-learned generator, K steps per batch of images.

Fang et al., "Up to 100x Faster Data-Free Knowledge Distillation", AAAI 2022. A call copies
the meta generator, adapts the copy and fresh latents to the teacher for K steps, keeps the
best batch it saw, and moves the meta generator so that the next call starts closer.

Where this differs from the authors' public code, on purpose:

- The adversarial term starts at the second ``refresh``, not one call before distillation:
  an untrained student has no opinion worth disagreeing with.
- The late reset draws the first BatchNorm's weights from N(1, 0.02^2), as every other reset
  does. There they become N(0, 0.02^2), which all but silences the generator.
- The reset also forgets the meta optimiser's moments of the parameters it replaces.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive
from kdci.config.recipes import scaled_count
from kdci.models import PixelModel
from kdci.models.generators.generator import ADAM_BETAS
from kdci.models.generators.meta_generator import MetaGenerator, MetaUpdate
from kdci.models.states import State
from kdci.substitution.base import SourceContext
from kdci.substitution.block import CallsBlock
from kdci.synthesis.inversion import BatchNormStatistics, BestBatch, InversionSource, generator_of
from kdci.training.losses import blend, bn_statistics_loss, disagreement, weighted_sum
from kdci.training.optimizers import Adam, set_gradients


class Fast(CallsBlock):
    """FastDFKD (AAAI 2022); the defaults are the authors' for CIFAR, WRN-40-2 teacher, K = 10."""

    needs_batch_norm: ClassVar[bool] = True

    latent_dim: Count = 256
    """Length of a latent."""
    generator_width: Count = 64
    """Channels of the generator's last block (ngf)."""
    num_steps: Count = 10
    """Inner steps a call (K)."""
    generator_learning_rate: Positive = 2e-3
    """Adam's rate of the adapted generator; the meta step's is K times that."""
    latent_learning_rate: Positive = 0.01
    """Adam's rate of the latents."""
    bn_weight: NonNegative = 10.0
    """Weight of R_bn; 0: it is not computed."""
    one_hot_weight: NonNegative = 0.4
    """Weight of the cross-entropy to the targets."""
    adversarial_weight: NonNegative = 1.1
    """Weight of the disagreement with the student; 0: the student is not run."""
    bn_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of earlier calls in the compared BN statistics."""
    warmup_calls: Count = 20
    """Calls before the student starts: the pool of the substitute stage."""
    meta_update: MetaUpdate = "fomaml"
    """How a call moves the meta generator; `none`: each call starts where the last one ended."""
    reptile_scale: Positive = 67.0
    """Factor on the reptile meta-gradient; the authors' value for CIFAR is 67."""
    reset_after_calls: Count | None = 120
    """Re-initialise the generator's first layers once, this many calls after the warm-up, for
    fresh diversity; null: never."""
    temperature: Positive = 20.0
    """T of the student's soft-label loss."""

    def source(self, context: SourceContext) -> FastSource:
        """Build the source; see the base class."""
        return FastSource(context, self)

    def scaled(self, budget: float) -> Self:
        """Scale the reset with the calls; see the base class."""
        reset = self.reset_after_calls and scaled_count(self.reset_after_calls, budget)
        return super().scaled(budget).model_copy(update={"reset_after_calls": reset})


class FastSource(InversionSource):
    """Substitution images by Fast; see the module's docstring and ``BankSource``."""

    method = "fast"
    kept = ("calls", "meta", "_remembered")
    params: Fast

    def __init__(self, context: SourceContext, params: Fast) -> None:
        super().__init__(context, params)
        reset_after = params.reset_after_calls
        self._reset_at = None if reset_after is None else params.warmup_calls + reset_after
        self._remembered: dict[str, list[Tensor]] = {}
        self.meta = MetaGenerator(
            generator_of(self),
            learning_rate=params.generator_learning_rate * params.num_steps,
            update=params.meta_update,
            reptile_scale=params.reptile_scale,
        )

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Make one call, adversarial to ``student`` except at the first; see the base class."""
        competes = self.weights["adversarial"] > 0 and self.calls > self.params.warmup_calls
        return self._synthesise(student if competes else None)

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; see the base class."""
        super().load_state_dict(state)
        self._remembered = {
            name: [value.to(self.context.device) for value in values]
            for name, values in self._remembered.items()
        }

    def invert(self, student: PixelModel | None) -> tuple[Tensor, dict[str, float]]:
        """Adapt generator and latents for K steps, and move the meta generator."""
        if self.calls == self._reset_at:
            self.meta.reset_first_layer(self.random)
        latents = self.meta.generator.latents(self.params.batch_size, self.random).requires_grad_()
        targets = self.targets().to(self.context.device)
        adapted = self.meta.start()
        weights = list(adapted.parameters())
        optimizer = Adam(
            [
                {"params": weights, "lr": self.params.generator_learning_rate},
                {"params": [latents], "lr": self.params.latent_learning_rate},
            ],
            betas=ADAM_BETAS,
        )
        summed = [torch.zeros_like(weight) for weight in weights]
        best = BestBatch(self.method)
        with self.reading() as statistics:
            for _ in range(self.params.num_steps):
                images = adapted(latents)
                readings = self._readings(images, targets, student, statistics)
                best.offer(readings, images=images)
                set_gradients(readings["inversion_loss"], [*weights, latents])
                for total, weight in zip(summed, weights, strict=True):
                    total.add_(cast(Tensor, weight.grad))
                optimizer.step()
            optimizer.zero_grad()
            if statistics is not None:
                self._remember(statistics)
        kept, metrics = best.result()
        self.meta.learn(adapted, summed)
        return kept["images"], metrics

    def _readings(
        self,
        images: Tensor,
        targets: Tensor,
        student: PixelModel | None,
        statistics: BatchNormStatistics | None,
    ) -> dict[str, Tensor]:
        """Return the terms for images seen through a fresh augmentation, and their sum."""
        views = self.view(images)
        logits = self.context.teacher(views).logits
        zero = logits.new_zeros(())
        terms = {
            "bn": zero if statistics is None else self._bn_loss(statistics),
            "one_hot": F.cross_entropy(logits, targets),
            "adversarial": zero if student is None else disagreement(student(views).logits, logits),
        }
        return {"inversion_loss": weighted_sum(terms, self.weights), **terms}

    def _bn_loss(self, statistics: BatchNormStatistics) -> Tensor:
        means, variances, *running = statistics.compared
        return bn_statistics_loss(
            self._blended("means", means), self._blended("variances", variances), *running
        )

    def _blended(self, name: str, current: list[Tensor]) -> list[Tensor]:
        return blend(current, self._remembered.get(name), self.params.bn_momentum)

    def _remember(self, statistics: BatchNormStatistics) -> None:
        """Let the last step's batch statistics into the running blend, once per call."""
        means, variances, *_ = statistics.compared
        for name, current in (("means", means), ("variances", variances)):
            self._remembered[name] = self._blended(name, [tensor.detach() for tensor in current])
