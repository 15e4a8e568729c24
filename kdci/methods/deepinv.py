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

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.methods.bank_source import BankSource
from kdci.methods.base import SoftLabelCriterion, SourceContext, State, StudentCriterion
from kdci.models import PixelModel
from kdci.synthesis.descent import set_gradients
from kdci.synthesis.image_priors import jitter, mean_norm, total_variation
from kdci.synthesis.inversion import BatchNormStatistics, BestBatch, frozen, require_batch_norm
from kdci.training.losses import bn_statistics_loss, competition
from kdci.training.optimizers import Adam
from kdci.training.schedules import learning_rate_factor, scale_learning_rates

# Side of the average pool of the low-resolution stage.
_POOLING = 2


class DeepInvSource(BankSource):
    """Substitution images by DeepInv; see the module's docstring and ``SubstitutionSource``.

    The defaults are those of the CIFAR comparisons of CMI and Fast.

    Args:
        context: Teacher, dataset, bank and seed.
        batch_size: Images per call, at least 2.
        num_steps: Steps per call at full resolution.
        low_resolution_steps: Steps before those through a 2x2 average pool, with an Adam and
            a schedule of their own; 0 for none. ImageNet: 2000, then 1000.
        learning_rate: Adam's rate, in normalised space.
        beta1: Adam's first beta.
        beta2: Adam's second beta.
        learning_rate_schedule: `constant`, or `cosine` to 0 over each stage.
        lr_warmup_steps: Steps of linear warm-up at the start of each stage.
        bn_weight: Weight of R_bn; 0: it is not computed.
        first_bn_factor: Factor on R_bn of the first BatchNorm layer; ImageNet: 10.
        one_hot_weight: Weight of the cross-entropy to the targets.
        adversarial_weight: Weight of the competition with the student; 0: plain
            DeepInversion, and the student is not run.
        js_temperature: T of the competition.
        js_floor: See ``competition``; 0.01 is the public code's.
        tv_l1_weight: Weight of the mean absolute differences of neighbouring pixels.
        tv_l2_weight: Weight of the L2 norms of those differences.
        l2_weight: Weight of the images' mean L2 norm.
        jitter_fraction: The batch is shifted at each step by up to this share of the side the
            teacher sees, wrapping around; below 0.5. Mirrored too, where the dataset allows.
        warmup_calls: Calls that ``prepare`` makes, without a student; 200 batches are the pool
            of the comparisons, one an epoch there.
        temperature: T of the student's soft-label loss.

    Raises:
        UserError: The teacher has no BatchNorm statistics to invert.
        ValueError: A number is out of its range, the schedule is unknown, or images of an odd
            size can not be halved.
    """

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 256,
        num_steps: int = 1000,
        low_resolution_steps: int = 0,
        learning_rate: float = 0.1,
        beta1: float = 0.5,
        beta2: float = 0.99,
        learning_rate_schedule: Literal["constant", "cosine"] = "constant",
        lr_warmup_steps: int = 0,
        bn_weight: float = 10.0,
        first_bn_factor: float = 1.0,
        one_hot_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        js_temperature: float = 3.0,
        js_floor: float = 0.0,
        tv_l1_weight: float = 0.0,
        tv_l2_weight: float = 0.0,
        l2_weight: float = 0.0,
        jitter_fraction: float = 0.125,
        warmup_calls: int = 200,
        temperature: float = 20.0,
    ) -> None:
        weights = [bn_weight, first_bn_factor, one_hot_weight, adversarial_weight]
        weights += [tv_l1_weight, tv_l2_weight, l2_weight]
        rules = {
            "batch_size >= 2": batch_size >= 2,
            "num_steps >= 1": num_steps >= 1,
            "low_resolution_steps >= 0": low_resolution_steps >= 0,
            "an even image size to halve": not low_resolution_steps
            or context.spec.image_size % _POOLING == 0,
            "learning_rate > 0": learning_rate > 0,
            "beta1 and beta2 in [0, 1)": 0 <= beta1 < 1 and 0 <= beta2 < 1,
            "learning_rate_schedule constant or cosine": learning_rate_schedule
            in ("constant", "cosine"),
            "lr_warmup_steps in [0, num_steps)": 0 <= lr_warmup_steps < max(num_steps, 1),
            "weights and first_bn_factor >= 0": all(weight >= 0 for weight in weights),
            "js_temperature > 0": js_temperature > 0,
            "js_floor in [0, 0.5)": 0 <= js_floor < 0.5,
            "jitter_fraction in [0, 0.5)": 0 <= jitter_fraction < 0.5,
            "warmup_calls >= 0": warmup_calls >= 0,
            "temperature > 0": temperature > 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ValueError(f"deepinv needs {'; '.join(broken)}")
        require_batch_norm(context.teacher, "deepinv", type(context.teacher.backbone).__name__)
        super().__init__(context)
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.low_resolution_steps = low_resolution_steps
        self.learning_rate = learning_rate
        self.betas = (beta1, beta2)
        self.learning_rate_schedule: Literal["constant", "cosine"] = learning_rate_schedule
        self.lr_warmup_steps = lr_warmup_steps
        self.weights = {
            "bn": bn_weight,
            "one_hot": one_hot_weight,
            "adversarial": adversarial_weight,
            "tv": 1.0,
            "l2": l2_weight,
        }
        self.tv_l1_weight = tv_l1_weight
        self.tv_l2_weight = tv_l2_weight
        self.first_bn_factor = first_bn_factor
        self.js_temperature = js_temperature
        self.js_floor = js_floor
        self.jitter_fraction = jitter_fraction
        self.warmup_calls = warmup_calls
        self.temperature = temperature
        self.calls = 0

    @property
    def num_preparations(self) -> int:
        """The calls of the warm-up."""
        return self.warmup_calls

    def prepare(self) -> Iterator[dict[str, float]]:
        """Make the calls of the warm-up, which need no student; see the protocol."""
        while self.calls < self.warmup_calls:
            yield self._synthesise(None)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Make one call in competition with ``student``; see the protocol."""
        return self._synthesise(student if self.weights["adversarial"] > 0 else None)

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss at the method's temperature."""
        return SoftLabelCriterion(self.temperature)

    def state_dict(self) -> State:
        """Return the number of calls and the random streams; pixels start anew each call."""
        return {**super().state_dict(), "calls": self.calls}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        super().load_state_dict(state)
        self.calls = state["calls"]

    def _synthesise(self, student: PixelModel | None) -> dict[str, float]:
        """Add one inverted batch to the bank.

        Returns:
            Of the kept batch the terms, unweighted except for ``tv``, which has two weights,
            and the weighted sum ``inversion_loss``; and the bank's new length.
        """
        teacher = self.context.teacher
        models = [teacher] if student is None else [teacher, student]
        with frozen(*models), self._reading() as statistics:
            images, metrics = self._invert(student, statistics)
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
        """Optimise pixels from noise; return the best batch in [0, 1] with its readings."""
        context, spec = self.context, self.context.spec
        shape = (self.batch_size, spec.channels, spec.image_size, spec.image_size)
        pixels = torch.randn(shape, generator=self.random).to(context.device).requires_grad_()
        targets = torch.randint(spec.num_classes, shape[:1], generator=self.random)
        targets = targets.sort().values.to(context.device)
        mean, std = context.teacher.mean, context.teacher.std
        black, white = -mean / std, (1 - mean) / std
        best = BestBatch("deepinv")
        for pooling, num_steps in ((_POOLING, self.low_resolution_steps), (1, self.num_steps)):
            optimizer = Adam([pixels], lr=self.learning_rate, betas=self.betas)
            for step in range(num_steps):
                readings = self._readings(self._view(pixels, pooling), targets, student, statistics)
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
        warmup = self.lr_warmup_steps
        if step < warmup:
            return (step + 1) / warmup
        return learning_rate_factor(
            self.learning_rate_schedule, step=step - warmup, num_steps=num_steps - warmup
        )

    def _view(self, pixels: Tensor, pooling: int) -> Tensor:
        """Return what this step looks at: pooled, shifted and perhaps mirrored pixels."""
        # Pooled first, so that the shift is the same share of a smaller picture.
        pooled = F.avg_pool2d(pixels, pooling) if pooling > 1 else pixels
        return jitter(
            pooled,
            fraction=self.jitter_fraction,
            flip=self.context.spec.flip,
            generator=self.random,
        )

    def _readings(
        self,
        view: Tensor,
        targets: Tensor,
        student: PixelModel | None,
        statistics: BatchNormStatistics | None,
    ) -> dict[str, Tensor]:
        """Return the terms for a view in normalised space, and their weighted sum."""
        teacher = self.context.teacher
        images = view * teacher.std + teacher.mean
        logits = teacher(images).logits
        zero = logits.new_zeros(())
        terms = {
            "bn": zero if statistics is None else self._bn_loss(statistics),
            "one_hot": F.cross_entropy(logits, targets),
            "adversarial": zero
            if student is None
            else competition(student(images).logits, logits, self.js_temperature, self.js_floor),
            "tv": total_variation(view, l1_weight=self.tv_l1_weight, l2_weight=self.tv_l2_weight),
            "l2": mean_norm(view) if self.weights["l2"] > 0 else zero,
        }
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return {"inversion_loss": total, **terms}

    def _bn_loss(self, statistics: BatchNormStatistics) -> Tensor:
        compared = (
            statistics.means,
            statistics.variances,
            statistics.running_means,
            statistics.running_variances,
        )
        first = bn_statistics_loss(*(layers[:1] for layers in compared))
        return bn_statistics_loss(*compared) + (self.first_bn_factor - 1) * first
