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

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive
from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SoftLabelCriterion, SourceContext, State, StudentCriterion
from kdci.substitution.block import CallsBlock
from kdci.synthesis.descent import set_gradients
from kdci.synthesis.image_priors import jitter, mean_norm, total_variation
from kdci.synthesis.inversion import BatchNormStatistics, BestBatch, frozen, require_batch_norm
from kdci.training.losses import bn_statistics_loss, competition
from kdci.training.optimizers import Adam
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
            raise PydanticCustomError(
                "cross_field",
                "has to be shorter than the {num_steps} steps",
                {"key": "lr_warmup_steps", "num_steps": self.num_steps},
            )
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


class DeepInvSource(BankSource):
    """Substitution images by DeepInv; see the module's docstring and ``SubstitutionSource``.

    Args:
        context: Teacher, dataset, bank and seed.
        params: The method's values.

    Raises:
        UserError: The teacher has no BatchNorm statistics to invert.
        ValueError: Images of an odd size can not be halved.
    """

    def __init__(self, context: SourceContext, params: DeepInv) -> None:
        if params.low_resolution_steps and context.spec.image_size % _POOLING:
            raise ValueError("deepinv needs an even image size to halve")
        require_batch_norm(context.teacher, "deepinv", type(context.teacher.backbone).__name__)
        super().__init__(context)
        self.params = params
        self.weights = {
            "bn": params.bn_weight,
            "one_hot": params.one_hot_weight,
            "adversarial": params.adversarial_weight,
            "tv": 1.0,
            "l2": params.l2_weight,
        }
        self.calls = 0

    @property
    def num_preparations(self) -> int:
        """The calls of the warm-up."""
        return self.params.warmup_calls

    def prepare(self) -> Iterator[dict[str, float]]:
        """Make the calls of the warm-up, which need no student; see the protocol."""
        while self.calls < self.params.warmup_calls:
            yield self._synthesise(None)

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Make one call in competition with ``student``; see the protocol."""
        return self._synthesise(student if self.weights["adversarial"] > 0 else None)

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss at the method's temperature."""
        return SoftLabelCriterion(self.params.temperature)

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
        shape = (self.params.batch_size, spec.channels, spec.image_size, spec.image_size)
        pixels = torch.randn(shape, generator=self.random).to(context.device).requires_grad_()
        targets = torch.randint(spec.num_classes, shape[:1], generator=self.random)
        targets = targets.sort().values.to(context.device)
        mean, std = context.teacher.mean, context.teacher.std
        black, white = -mean / std, (1 - mean) / std
        betas = (self.params.beta1, self.params.beta2)
        best = BestBatch("deepinv")
        for pooling, num_steps in (
            (_POOLING, self.params.low_resolution_steps),
            (1, self.params.num_steps),
        ):
            optimizer = Adam([pixels], lr=self.params.learning_rate, betas=betas)
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
            else competition(
                student(images).logits, logits, self.params.js_temperature, self.params.js_floor
            ),
            "tv": total_variation(
                view, l1_weight=self.params.tv_l1_weight, l2_weight=self.params.tv_l2_weight
            ),
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
        return bn_statistics_loss(*compared) + (self.params.first_bn_factor - 1) * first
