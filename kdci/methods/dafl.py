"""DAFL: a generator trained until the teacher takes its images for real ones.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019. The frozen teacher judges the
generator by three signs of real images: it is sure of their class (one-hot loss), its features
are active (activation loss), and a batch covers all classes (information-entropy loss). None
of them asks for the student, so the generator is trained to the end beforehand.

Where this differs from the authors' public code and from the later ones that the published
rows come from, on purpose:

- The student meets images from along the generator's whole trajectory, as there, but out of a
  pool in random order, and not in step with the generator. A pool from the last generator
  alone would be far less diverse.
- T is explicit. The published rows ran T = 1, whatever their command line said: that is the
  default here, and 20 a value like any other.
- All three losses are in nats. The authors' code takes the entropy's logarithm to base 10:
  their weight 5 is 2.17 in nats, and 20 is 8.69.
- Images are kept in [0, 1]. The original generator's, which are normalised and unbounded, go
  to the teacher as they are and are clipped for the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive, refuse
from kdci.config.recipes import scaled_count
from kdci.errors import NumericError
from kdci.models.generators.generator import ADAM_BETAS, DaflGenerator, Generator
from kdci.store.metrics import RunningMeans
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.block import TIMED_PARTS, BatchSize, MethodBlock
from kdci.synthesis.inversion import frozen, generator_of
from kdci.training.losses import activation_loss, class_balance, one_hot_costs, weighted_sum
from kdci.training.optimizers import Adam, Moments, set_gradients


class Dafl(MethodBlock):
    """DAFL (ICCV 2019); the defaults are those behind the published CIFAR rows.

    These are the small generator's, of the published comparisons (Fast-Datafree).
    """

    pool_steps: ClassVar[tuple[str, ...]] = ("num_steps",)
    part_counts: ClassVar[Mapping[str, int]] = {"sample_every": 1}

    generator: Literal["small", "original"] = "small"
    """`small`: that of the published comparisons; `original`: the authors' own (latent 1000)."""
    latent_dim: Count = 512
    """Length of a latent."""
    generator_width: Count = 64
    """Channels of the generator's last hidden layer."""
    batch_size: BatchSize = 256
    """Images of a generator step."""
    num_steps: Count = 16_000
    """Generator steps."""
    sample_every: Count = 80
    """A batch of fresh images joins the pool each time so many steps were taken."""
    skip_steps: Annotated[int, Field(ge=0)] = 0
    """First steps that leave no images, while the generator is unformed."""
    learning_rate: Positive = 1e-3
    """Adam's rate, constant."""
    one_hot_weight: NonNegative = 1.0
    """Weight of the one-hot loss."""
    activation_weight: NonNegative = 1e-3
    """Weight of the activation loss."""
    entropy_weight: NonNegative = 20.0
    """Of the information entropy in nats; a weight meant for log10 is 2.303 times smaller here."""
    augment_pool: bool = False
    """Whether the student meets crops and flips; the paper's does not, but it sees every image
    once."""
    temperature: Positive = 1.0
    """T of the student's soft-label loss: 1 is what the published rows ran."""

    @model_validator(mode="after")
    def _some_steps_are_kept(self) -> Self:
        if self.skip_steps >= self.num_steps:
            refuse("skip_steps", f"skips all {self.num_steps} steps: no image would be left")
        return self

    def source(self, context: SourceContext) -> DaflSource:
        """Build the source; see the base class."""
        return DaflSource(context, self)

    def scaled(self, budget: float) -> Self:
        """Scale the generator's steps; the pool keeps its size as long as steps allow."""
        steps = scaled_count(self.num_steps, budget)
        every = scaled_count(self.sample_every, budget)
        skipped = min(round(self.skip_steps * budget), steps - 1)
        return self.model_copy(
            update={"num_steps": steps, "sample_every": every, "skip_steps": skipped}
        )

    def shortened(self, counts: Mapping[str, int]) -> Self:
        """Return a few parts that all leave images; see the base class."""
        steps = TIMED_PARTS * counts["sample_every"]
        return self.model_copy(update={"num_steps": steps, "skip_steps": 0, **counts})

    @property
    def num_pool_images(self) -> int:
        """A batch for every part of the training that is not skipped."""
        ends = [*range(self.sample_every, self.num_steps, self.sample_every), self.num_steps]
        num_batches = len([end for end in ends if end > self.skip_steps])
        return int(self.batch_size) * num_batches


class DaflSource(BankSource):
    """Substitution images by DAFL; see the module's docstring and ``BankSource``."""

    kept = ("steps", "generator", "_moments")
    params: Dafl

    def __init__(self, context: SourceContext, params: Dafl) -> None:
        super().__init__(context, params)
        self.weights = params.weights
        self.steps = 0
        self.emits_pixels = params.generator == "small"
        self.generator = generator_of(self, Generator if self.emits_pixels else DaflGenerator)
        self._optimizer = Adam(
            self.generator.parameters(), lr=params.learning_rate, betas=ADAM_BETAS
        )
        self._moments = Moments(self._optimizer)

    @property
    def num_preparations(self) -> int:
        """The parts of the training, each ``sample_every`` steps long."""
        return -(-self.params.num_steps // self.params.sample_every)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Train the generator, leaving images of its trajectory in the bank; see the base class.

        Yields:
            Means of the unweighted terms and of their weighted sum ``generator_loss`` over a
            part, and the bank's new length.
        """
        while self.steps < self.params.num_steps:
            yield self._train_part()

    def batch(self, size: int) -> Tensor:
        """Return images of the bank, augmented where asked for; see the base class."""
        if self.params.augment_pool:
            return super().batch(size)
        return self.draw(size).float() / 255

    def _train_part(self) -> dict[str, float]:
        means = RunningMeans()
        with frozen(self.context.teacher):
            for _ in range(min(self.params.sample_every, self.params.num_steps - self.steps)):
                means.add(self._step())
        if self.steps > self.params.skip_steps:
            with torch.no_grad():
                self.bank.append(self._images().clamp(0, 1))
        return {**means.take(), "bank": float(len(self.bank))}

    def _step(self) -> dict[str, float]:
        """Take one step of the generator; the teacher gets no gradient."""
        logits, features = self.context.teacher(self._images())
        terms = {
            "one_hot": one_hot_costs(logits).mean(),
            "activation": activation_loss(features),
            "entropy": class_balance(logits),
        }
        total = weighted_sum(terms, self.weights)
        set_gradients(total, list(self.generator.parameters()))
        self._optimizer.step()
        self.steps += 1
        readings = torch.stack([total, *terms.values()]).tolist()
        if not math.isfinite(readings[0]):
            raise NumericError(
                f"methods.dafl, generator step {self.steps}",
                "the generator's loss is not finite",
                "lower methods.dafl.learning_rate",
            )
        return dict(zip(("generator_loss", *terms), readings, strict=True))

    def _images(self) -> Tensor:
        """Return fresh images on the [0, 1] scale; the original generator's may leave it."""
        images: Tensor = self.generator(self.generator.latents(self.params.batch_size, self.random))
        if self.emits_pixels:
            return images
        teacher = self.context.teacher
        return images * teacher.std + teacher.mean
