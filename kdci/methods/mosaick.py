"""Mosaick (MosaicKD): a generator that pieces the teacher's classes together from foreign patches.

Fang et al., "Mosaicking to Distill: Knowledge Distillation from Out-of-Domain Data", NeurIPS
2021. Small patches look alike in all domains. A discriminator of patches holds the generator to
those of an unlabelled open world, the teacher to images it is sure of and to all classes alike,
and the student, trained on the fly, to images on which it still fails.

Where this differs from the authors' public code, on purpose:

- The game starts without the student: the substitute stage plays a warm-up with the adversarial
  term off, and leaves images of it in the pool, as what the confounder dictionary is built from.
  The student itself meets the chosen images and fresh ones of the generator, as there.
- All images meet the teacher's normalisation. There the student's open-world images have that
  of their own dataset, and the made ones beside them the teacher's.
- The student is in eval mode in the generator's step, and its BatchNorm statistics so keep to
  the images that it trains on.
- The entropy is taken of log-softmax. There a probability that underflows gives NaN, which
  sorts first: the image the teacher is surest of would be kept for being the most foreign.
- Of every open world the images of the highest entropy are kept, not of two datasets only;
  ``num_selected`` at the pool's size keeps all.
- A student's batch is half made and half chosen, whatever its size; there it is a whole batch of
  each. The real images of a game step are always a full batch.
- The schedule of the game's learning rates is counted in game steps after the warm-up, and may
  be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from kdci.config.block import Count, NonNegative, Positive
from kdci.config.open_world import OpenWorld
from kdci.config.recipes import StudentRecipe, scaled_count
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.data.bank.stratified_rows import pick_evenly
from kdci.data.open_world.scores import OpenWorldScores
from kdci.models import PixelModel
from kdci.models.generators.generating import build_beside
from kdci.models.generators.generator import Generator
from kdci.models.generators.patch_discriminator import PatchDiscriminator
from kdci.store.metrics import RunningMeans
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SoftLabelCriterion, SourceContext, State, StudentCriterion
from kdci.substitution.block import BatchSize, MethodBlock
from kdci.synthesis.patch_game import PatchGame
from kdci.training.losses import prediction_entropies
from kdci.training.runtime import derive_seed
from kdci.training.schedules import learning_rate_factor

_WARMUP_PARTS = 20
_CANDIDATES = 2
"""Made images for each that is picked, where batches are drawn evenly over strata."""


class Mosaick(MethodBlock):
    """MosaicKD (NeurIPS 2021); the defaults are the authors', as far as they have the value."""

    pool_steps: ClassVar[tuple[str, ...]] = ("warmup_steps",)
    part_counts: ClassVar[Mapping[str, int]] = {
        "warmup_steps": 1,
        "num_samples": 256,
        "num_selected": 256,
    }

    num_selected: Count
    """Open-world images kept, those the teacher is least sure of."""
    latent_dim: Count = 100
    """Length of a latent."""
    generator_width: Count = 64
    """Channels of the generator's last hidden layer."""
    discriminator_width: Count = 128
    """Channels of the discriminator's first layer."""
    batch_size: BatchSize = 256
    """Images of a step of generator and discriminator: as many made as real."""
    learning_rate: Positive = 1e-3
    """Adam's rate of generator and discriminator."""
    adversarial_weight: NonNegative = 1.0
    """Weight of the student's divergence from the teacher; 0: the student is not run."""
    align_weight: NonNegative = 1.0
    """Weight of the mean entropy of the teacher's predictions, in nats."""
    local_weight: NonNegative = 1.0
    """Weight of the discriminator's loss and of the generator's against it."""
    balance_weight: NonNegative = 10.0
    """Weight of the class balance, in bits."""
    warmup_steps: Count = 2000
    """Steps without a student, in the substitute stage."""
    num_samples: Count = 25_000
    """Images of the generator on its way through the warm-up that join the pool."""
    distillation_steps_per_game_step: Count = 5
    """The student's steps for each step of generator and discriminator."""
    cosine_steps: Count | None = None
    """Length of their cosine schedule in steps after the warm-up; null: constant rates."""
    temperature: Positive = 1.0
    """T of the student's soft-label loss; the authors' default."""
    score_batch_size: Count = 512
    """Images the teacher scores at once."""
    open_world: OpenWorld = OpenWorld()
    """The unlabelled images to choose from."""

    def source(self, context: SourceContext) -> MosaickSource:
        """Build the source; see the base class."""
        return MosaickSource(context, self)

    def scaled(self, budget: float) -> Self:
        """Scale the steps of the game."""
        steps = scaled_count(self.warmup_steps, budget)
        cosine = self.cosine_steps and scaled_count(self.cosine_steps, budget)
        return self.model_copy(update={"warmup_steps": steps, "cosine_steps": cosine})

    @property
    def num_pool_images(self) -> int:
        """The chosen images and the generator's."""
        return self.num_selected + self.num_samples

    def num_refreshes(self, recipe: StudentRecipe) -> int:
        """Return the steps of the game that the student's steps leave room for."""
        return -(-recipe.num_steps // self.distillation_steps_per_game_step)


class MosaickSource(BankSource):
    """Substitution images by MosaicKD; see the module's docstring and ``SubstitutionSource``.

    The bank holds the chosen images first, then those of the generator on its way: the warm-up
    is cut into at most 20 parts of as many steps, and at the end of each part that ends in the
    second half of it an equal portion of ``num_samples`` fresh images joins.

    Args:
        context: Teacher, dataset, bank, seed, and what opens the unlabelled pool.
        params: The method's values.
    """

    def __init__(self, context: SourceContext, params: Mosaick) -> None:
        super().__init__(context)
        self.params = params
        self._scores = OpenWorldScores(
            "mosaick",
            name="entropy",
            score=prediction_entropies,
            keep="highest",
            num_selected=params.num_selected,
            batch_size=params.score_batch_size,
            skipped=context.skipped,
        )
        self.refresh_period = params.distillation_steps_per_game_step
        self._num_open_world = 0
        self._game_rows = _game_rows(context.seed)
        spec = context.spec
        generator = build_beside(
            context.teacher,
            lambda: Generator(
                latent_dim=params.latent_dim,
                image_size=spec.image_size,
                channels=spec.channels,
                width=params.generator_width,
                large=True,
            ),
            self.random,
        )
        discriminator = build_beside(
            context.teacher,
            lambda: PatchDiscriminator(channels=spec.channels, width=params.discriminator_width),
            self.random,
        )
        self.game = PatchGame(
            context.teacher,
            generator,
            discriminator,
            learning_rate=params.learning_rate,
            weights={
                "local": params.local_weight,
                "align": params.align_weight,
                "balance": params.balance_weight,
                "adversarial": params.adversarial_weight,
            },
        )

    @property
    def num_open_world(self) -> int:
        """The chosen images, which come first in the bank."""
        return self._num_open_world

    @property
    def num_preparations(self) -> int:
        """Not known: the pool's size is, once it is opened."""
        return 0

    def prepare(self) -> Iterator[dict[str, float]]:
        """Choose of the open world, then play the game without a student; see the protocol.

        Yields:
            See ``OpenWorldScores.choose``, whose score is the ``entropy`` in nats; then, for
            every part of the warm-up, the means of what ``refresh`` returns, and ``bank``.

        Raises:
            UserError: The pool has fewer images than are to be selected, or too many bad ones.
            NumericError: The teacher's prediction, or a loss, is not finite.
        """
        context = self.context
        for report in self._scores.choose(context.open_world, context.teacher, self.bank):
            self._num_open_world = len(self.bank)
            yield report
        while self.game.steps < self.params.warmup_steps:
            yield self._warm_up()

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Take one step of the game, adversarial to ``student``; see the protocol.

        Returns:
            See ``PatchGame.step``.

        Raises:
            NumericError: A loss is not finite.
        """
        return self._play(student if self.game.weights["adversarial"] > 0 else None)

    def adopt(self, bank: ImageBank, kept: Tensor) -> None:
        """Go on with another bank, counting its open-world rows; see the protocol."""
        super().adopt(bank, kept)
        self._num_open_world = int((kept < self._num_open_world).sum())

    def reseed(self, seed: int) -> None:
        """Start the random streams anew; see the protocol."""
        super().reseed(seed)
        self._game_rows = _game_rows(seed)

    def batch(self, size: int) -> Tensor:
        """Return fresh made images, then augmented chosen ones, half and half.

        The made ones are never augmented, as in the paper; of an odd size theirs is the
        smaller half. With strata the made ones are picked out of twice as many.
        """
        made = self._make_for_batch(size // 2)
        rows = self.next_rows(size - len(made), self._num_open_world)
        chosen = self.bank.rows(rows).to(self.context.device)
        return torch.cat([made, self.augment(chosen).float() / 255])

    def criterion(self) -> StudentCriterion:
        """Return the soft-label loss at the method's temperature."""
        return SoftLabelCriterion(self.params.temperature)

    def state_dict(self) -> State:
        """Return the game, the scores so far, the number chosen and the random streams."""
        return {
            **super().state_dict(),
            "scores": self._scores.state_dict(),
            "num_open_world": self._num_open_world,
            "game_rows": self._game_rows.state_dict(),
            "game": self.game.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        super().load_state_dict(state)
        self._scores.load_state_dict(state["scores"])
        self._num_open_world = state["num_open_world"]
        self._game_rows.load_state_dict(state["game_rows"])
        self.game.load_state_dict(state["game"])

    def _make_for_batch(self, size: int) -> Tensor:
        if self.stratum_of is None:
            return self._make(size)
        candidates = self._make(_CANDIDATES * size)
        return candidates[pick_evenly(self.stratum_of(candidates), size)]

    @torch.no_grad()
    def _make(self, size: int) -> Tensor:
        """Return fresh images of the generator, without gradient."""
        # The generator's BatchNorm needs two images to have a batch's statistics.
        images: Tensor = self.game.generator(self._latents(max(size, 2)))[:size]
        return images

    def _latents(self, size: int) -> Tensor:
        latents = torch.randn(size, self.params.latent_dim, generator=self.random)
        return latents.to(self.context.device)

    def _warm_up(self) -> dict[str, float]:
        """Play a part of the warm-up, and let the samples that are due join the bank."""
        num_steps = self.params.warmup_steps
        part = -(-num_steps // _WARMUP_PARTS)
        means = RunningMeans()
        for _ in range(min(part, num_steps - self.game.steps)):
            means.add(self._play(None))
        ends = [*range(part, num_steps, part), num_steps]
        sampled = [end for end in ends if 2 * end > num_steps]
        portions = sum(end <= self.game.steps for end in sampled)
        due = self._num_open_world + self.params.num_samples * portions // len(sampled)
        while len(self.bank) < due:
            # Whole batches, as in the game: the statistics of a small rest would be others.
            self.bank.append(self._make(self.params.batch_size)[: due - len(self.bank)])
        return {**means.take(), "bank": float(len(self.bank))}

    def _play(self, student: PixelModel | None) -> dict[str, float]:
        """Take one step of the game, with the next chosen images as the real ones."""
        rows = self._game_rows.next(self.params.batch_size, self._num_open_world)
        real = self.bank.rows(rows).to(self.context.device).float() / 255
        latents = self._latents(self.params.batch_size)
        return self.game.step(latents, real, student, rate_factor=self._rate_factor())

    def _rate_factor(self) -> float:
        num_steps = self.params.cosine_steps
        if num_steps is None:
            return 1.0
        step = min(max(self.game.steps - self.params.warmup_steps, 0), num_steps)
        return learning_rate_factor("cosine", step=step, num_steps=num_steps)


def _game_rows(seed: int) -> ShuffledRows:
    """Return the order of the game's real images, unrelated to that of the student's."""
    return ShuffledRows(derive_seed(seed, "game"))
