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
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from kdci.errors import NumericError
from kdci.methods.bank_source import BankSource
from kdci.methods.base import SoftLabelCriterion, SourceContext, State, StudentCriterion
from kdci.models import PixelModel
from kdci.models.generators.generating import build_beside
from kdci.models.generators.generator import ADAM_BETAS, DaflGenerator, Generator
from kdci.store.metrics import RunningMeans
from kdci.synthesis.descent import set_gradients
from kdci.synthesis.inversion import frozen
from kdci.training.losses import activation_loss, class_balance, one_hot_costs
from kdci.training.optimizers import Adam, load_moments, moments_of

GeneratorKind = Literal["small", "original"]


class DaflSource(BankSource):
    """Substitution images by DAFL; see the module's docstring and ``SubstitutionSource``.

    The defaults are those behind the published CIFAR rows (Fast-Datafree's variant).

    Args:
        context: Teacher, dataset, bank and seed.
        generator: ``small`` (G-small, [0, 1]) or ``original`` (the DAFL authors', normalised).
        latent_dim: Length of a latent.
        generator_width: Channels of the generator's last hidden layer.
        batch_size: Images per generator step, at least 2.
        num_steps: Generator steps.
        sample_every: After this many steps one batch of fresh images joins the pool.
        skip_steps: No images join during these first steps, while the generator is unformed.
        learning_rate: Adam's rate, constant.
        one_hot_weight: Weight of the one-hot loss.
        activation_weight: Weight of the activation loss.
        entropy_weight: Weight of the information-entropy loss, in nats.
        augment_pool: Whether the student meets crops and flips of the pool; the paper's does
            not, but it sees every image once.
        temperature: T of the student's soft-label loss.

    Raises:
        ValueError: A count is too small, all steps are skipped, or ``generator`` is unknown.
    """

    def __init__(
        self,
        context: SourceContext,
        *,
        generator: GeneratorKind = "small",
        latent_dim: int = 512,
        generator_width: int = 64,
        batch_size: int = 256,
        num_steps: int = 16_000,
        sample_every: int = 80,
        skip_steps: int = 0,
        learning_rate: float = 1e-3,
        one_hot_weight: float = 1.0,
        activation_weight: float = 1e-3,
        entropy_weight: float = 20.0,
        augment_pool: bool = False,
        temperature: float = 1.0,
    ) -> None:
        if batch_size < 2 or sample_every < 1 or not 0 <= skip_steps < num_steps:
            raise ValueError(
                "need batch_size >= 2, sample_every >= 1 and 0 <= skip_steps < num_steps, got "
                f"{batch_size}, {sample_every}, {skip_steps} and {num_steps}"
            )
        if generator not in get_args(GeneratorKind):
            raise ValueError(f"generator must be one of {get_args(GeneratorKind)}")
        super().__init__(context)
        self.latent_dim = latent_dim
        self.batch_size = batch_size
        self.num_steps = num_steps
        self.sample_every = sample_every
        self.skip_steps = skip_steps
        self.weights = {
            "one_hot": one_hot_weight,
            "activation": activation_weight,
            "entropy": entropy_weight,
        }
        self.augment_pool = augment_pool
        self.temperature = temperature
        self.steps = 0
        kind = Generator if generator == "small" else DaflGenerator
        self.emits_pixels = generator == "small"
        self.generator = build_beside(
            context.teacher,
            lambda: kind(
                latent_dim=latent_dim,
                image_size=context.spec.image_size,
                channels=context.spec.channels,
                width=generator_width,
            ),
            self.random,
        )
        self._optimizer = Adam(self.generator.parameters(), lr=learning_rate, betas=ADAM_BETAS)

    @property
    def num_preparations(self) -> int:
        """The parts of the training, each ``sample_every`` steps long."""
        return -(-self.num_steps // self.sample_every)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Train the generator, leaving images of its trajectory in the bank; see the protocol.

        Yields:
            Means of the unweighted terms and of their weighted sum ``generator_loss`` over a
            part, and the bank's new length.
        """
        while self.steps < self.num_steps:
            yield self._train_part()

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Do nothing: no loss of the generator asks for the student."""
        return {}

    def batch(self, size: int) -> Tensor:
        """Return images of the bank, augmented where asked for; see the protocol."""
        if self.augment_pool:
            return super().batch(size)
        return self.draw(size).float() / 255

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss at the method's temperature."""
        return SoftLabelCriterion(self.temperature)

    def state_dict(self) -> State:
        """Return the generator, Adam's moments, the steps taken and the random streams."""
        return {
            **super().state_dict(),
            "steps": self.steps,
            "generator": {
                name: value.clone() for name, value in self.generator.state_dict().items()
            },
            "moments": moments_of(self._optimizer),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        super().load_state_dict(state)
        self.steps = state["steps"]
        self.generator.load_state_dict(state["generator"])
        load_moments(self._optimizer, state["moments"])

    def _train_part(self) -> dict[str, float]:
        means = RunningMeans()
        with frozen(self.context.teacher):
            for _ in range(min(self.sample_every, self.num_steps - self.steps)):
                means.add(self._step())
        if self.steps > self.skip_steps:
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
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
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
        latents = torch.randn(self.batch_size, self.latent_dim, generator=self.random)
        images: Tensor = self.generator(latents.to(self.context.device))
        if self.emits_pixels:
            return images
        teacher = self.context.teacher
        return images * teacher.std + teacher.mean
