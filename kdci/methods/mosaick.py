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
from kdci.store.metrics import RunningMeans
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.block import BatchSize, MethodBlock
from kdci.synthesis.inversion import generator_of
from kdci.synthesis.patch_game import PatchDiscriminator, PatchGame
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
    """Substitution images by MosaicKD; see the module's docstring and ``BankSource``.

    The bank holds the chosen images first, then those of the generator on its way: the warm-up
    is cut into at most 20 parts of as many steps, and at the end of each part that ends in the
    second half of it an equal portion of ``num_samples`` fresh images joins.

    Args:
        context: Teacher, dataset, bank, seed, and what opens the unlabelled pool.
        params: The method's values.
    """

    kept = ("_scores", "_num_open_world", "_game_rows", "game")
    params: Mosaick

    def __init__(self, context: SourceContext, params: Mosaick) -> None:
        super().__init__(context, params)
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
        channels, width = context.spec.channels, params.discriminator_width
        generator = generator_of(self, large=True)
        discriminator = build_beside(
            context.teacher,
            lambda: PatchDiscriminator(channels=channels, width=width),
            self.random,
        )
        self.game = PatchGame(
            context.teacher,
            generator,
            discriminator,
            learning_rate=params.learning_rate,
            weights=params.weights,
        )

    @property
    def num_open_world(self) -> int:
        """The chosen images, which come first in the bank."""
        return self._num_open_world

    def prepare(self) -> Iterator[dict[str, float]]:
        """Choose of the open world, then play the game without a student; see the base class.

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
        """Take one step of the game, adversarial to ``student``; see the base class.

        Returns:
            See ``PatchGame.step``.

        Raises:
            NumericError: A loss is not finite.
        """
        return self._play(student if self.game.weights["adversarial"] > 0 else None)

    def adopt(self, bank: ImageBank, kept: Tensor) -> None:
        """Go on with another bank, counting its open-world rows; see the base class."""
        super().adopt(bank, kept)
        self._num_open_world = int((kept < self._num_open_world).sum())

    def reseed(self, seed: int) -> None:
        """Start the random streams anew; see the base class."""
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

    def _make_for_batch(self, size: int) -> Tensor:
        if self.stratum_of is None:
            return self._make(size)
        candidates = self._make(_CANDIDATES * size)
        return candidates[pick_evenly(self.stratum_of(candidates), size)]

    @torch.no_grad()
    def _make(self, size: int) -> Tensor:
        """Return fresh images of the generator, without gradient."""
        # The generator's BatchNorm needs two images to have a batch's statistics.
        latents = self.game.generator.latents(max(size, 2), self.random)
        images: Tensor = self.game.generator(latents)[:size]
        return images

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
        latents = self.game.generator.latents(self.params.batch_size, self.random)
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
