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

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.methods.bank_source import BankSource
from kdci.methods.base import SoftLabelCriterion, SourceContext, State, StudentCriterion
from kdci.models import PixelModel
from kdci.models.generators.generating import build_beside
from kdci.models.generators.generator import ADAM_BETAS, Generator
from kdci.models.generators.meta_generator import MetaGenerator, MetaUpdate
from kdci.synthesis.descent import set_gradients
from kdci.synthesis.inversion import BatchNormStatistics, BestBatch, frozen, require_batch_norm
from kdci.training.losses import blend, bn_statistics_loss, disagreement
from kdci.training.optimizers import Adam


class FastSource(BankSource):
    """Substitution images by Fast; see the module's docstring and ``SubstitutionSource``.

    The defaults are the authors' for CIFAR, WRN-40-2 teacher and K = 10.

    Args:
        context: Teacher, dataset, bank and seed.
        latent_dim: Length of a latent.
        generator_width: Channels of the generator's last hidden layer.
        batch_size: Images per call, at least 2.
        num_steps: Inner steps K per call.
        generator_learning_rate: Adam rate of the adapted generator; the meta step's is K
            times that.
        latent_learning_rate: Adam rate of the latents.
        bn_weight: Weight of R_bn; 0: it is not computed.
        one_hot_weight: Weight of the cross-entropy to the targets.
        adversarial_weight: Weight of the disagreement with the student; 0: none is run.
        bn_momentum: Share of earlier calls in the batch statistics that R_bn compares.
        warmup_calls: Calls that ``prepare`` makes, without a student.
        meta_update: See ``MetaGenerator``.
        reptile_scale: See ``MetaGenerator``; the authors' value for CIFAR is 67.
        reset_after_calls: After this many calls past the warm-up the generator's first
            layer starts anew, once, for fresh diversity; None for never.
        temperature: T of the student's soft-label loss.

    Raises:
        UserError: The teacher has no BatchNorm statistics to invert.
        ValueError: ``num_steps`` or ``batch_size`` is too small, or ``meta_update`` unknown.
    """

    def __init__(
        self,
        context: SourceContext,
        *,
        latent_dim: int = 256,
        generator_width: int = 64,
        batch_size: int = 256,
        num_steps: int = 10,
        generator_learning_rate: float = 2e-3,
        latent_learning_rate: float = 1e-2,
        bn_weight: float = 10.0,
        one_hot_weight: float = 0.4,
        adversarial_weight: float = 1.1,
        bn_momentum: float = 0.9,
        warmup_calls: int = 20,
        meta_update: MetaUpdate = "fomaml",
        reptile_scale: float = 67.0,
        reset_after_calls: int | None = 120,
        temperature: float = 20.0,
    ) -> None:
        if num_steps < 1 or batch_size < 2:
            raise ValueError(
                f"need num_steps >= 1 and batch_size >= 2, got {num_steps} and {batch_size}"
            )
        require_batch_norm(context.teacher, "fast", type(context.teacher.backbone).__name__)
        super().__init__(context)
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.generator_learning_rate = generator_learning_rate
        self.latent_learning_rate = latent_learning_rate
        self.latent_dim = latent_dim
        self.weights = {
            "bn": bn_weight,
            "one_hot": one_hot_weight,
            "adversarial": adversarial_weight,
        }
        self.bn_momentum = bn_momentum
        self.warmup_calls = warmup_calls
        self._reset_at = None if reset_after_calls is None else warmup_calls + reset_after_calls
        self.temperature = temperature
        self.calls = 0
        self._remembered: dict[str, list[Tensor]] = {}
        generator = build_beside(
            context.teacher,
            lambda: Generator(
                latent_dim=latent_dim,
                image_size=context.spec.image_size,
                channels=context.spec.channels,
                width=generator_width,
            ),
            self.random,
        )
        self.meta = MetaGenerator(
            generator,
            learning_rate=generator_learning_rate * num_steps,
            update=meta_update,
            reptile_scale=reptile_scale,
        )

    @property
    def num_preparations(self) -> int:
        """The calls of the warm-up."""
        return self.warmup_calls

    def prepare(self) -> Iterator[dict[str, float]]:
        """Make the calls of the warm-up, which need no student; see the protocol."""
        while self.calls < self.warmup_calls:
            yield self._synthesise(None)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Make one call, adversarial to ``student`` except at the first; see the protocol."""
        competes = self.weights["adversarial"] > 0 and self.calls > self.warmup_calls
        return self._synthesise(student if competes else None)

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss at the method's temperature."""
        return SoftLabelCriterion(self.temperature)

    def state_dict(self) -> State:
        """Return generator, moments, remembered statistics and random streams."""
        return {
            **super().state_dict(),
            "calls": self.calls,
            "meta": self.meta.state_dict(),
            "remembered": {name: list(values) for name, values in self._remembered.items()},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        super().load_state_dict(state)
        self.calls = state["calls"]
        self.meta.load_state_dict(state["meta"])
        self._remembered = {
            name: [value.to(self.context.device) for value in values]
            for name, values in state["remembered"].items()
        }

    def _synthesise(self, student: PixelModel | None) -> dict[str, float]:
        """Add one inverted batch to the bank and move the meta generator.

        Returns:
            The unweighted terms and the weighted sum ``inversion_loss`` of the kept batch,
            and the bank's new length.
        """
        if self.calls == self._reset_at:
            self.meta.reset_first_layer(self.random)
        teacher = self.context.teacher
        models = [teacher] if student is None else [teacher, student]
        with frozen(*models), self._reading() as statistics:
            images, metrics = self._invert(student, statistics)
            if statistics is not None:
                self._remember(statistics)
        self.bank.append(images)
        self.calls += 1
        return {**metrics, "bank": float(len(self.bank))}

    def _reading(self) -> AbstractContextManager[BatchNormStatistics | None]:
        """Return what reads the teacher's batch statistics, where a term asks for them."""
        if self.weights["bn"] > 0:
            return BatchNormStatistics(self.context.teacher)
        return nullcontext()

    def _invert(
        self, student: PixelModel | None, statistics: BatchNormStatistics | None
    ) -> tuple[Tensor, dict[str, float]]:
        """Adapt generator and latents for K steps; return the best batch with its readings."""
        device, size = self.context.device, (self.batch_size,)
        latents = torch.randn(*size, self.latent_dim, generator=self.random).to(device)
        latents.requires_grad_()
        num_classes = self.context.spec.num_classes
        targets = torch.randint(num_classes, size, generator=self.random).to(device)
        adapted = self.meta.start()
        weights = list(adapted.parameters())
        optimizer = Adam(
            [
                {"params": weights, "lr": self.generator_learning_rate},
                {"params": [latents], "lr": self.latent_learning_rate},
            ],
            betas=ADAM_BETAS,
        )
        summed = [torch.zeros_like(weight) for weight in weights]
        best = BestBatch("fast")
        for _ in range(self.num_steps):
            images = adapted(latents)
            readings = self._readings(images, targets, student, statistics)
            best.offer(readings, images=images)
            set_gradients(readings["inversion_loss"], [*weights, latents])
            for total, weight in zip(summed, weights, strict=True):
                total.add_(cast(Tensor, weight.grad))
            optimizer.step()
        optimizer.zero_grad()
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
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"inversion_loss": total, **terms}

    def _bn_loss(self, statistics: BatchNormStatistics) -> Tensor:
        momentum, remembered = self.bn_momentum, self._remembered
        return bn_statistics_loss(
            blend(statistics.means, remembered.get("means"), momentum),
            blend(statistics.variances, remembered.get("variances"), momentum),
            statistics.running_means,
            statistics.running_variances,
        )

    def _remember(self, statistics: BatchNormStatistics) -> None:
        """Let the last step's batch statistics into the running blend, once per call."""
        for name, current in (("means", statistics.means), ("variances", statistics.variances)):
            values = [tensor.detach() for tensor in current]
            self._remembered[name] = blend(values, self._remembered.get(name), self.bn_momentum)
