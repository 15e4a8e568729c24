"""A method's images in a bank: how they come, how they are drawn, what resuming needs of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdci.data.bank.augmentation import augment
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.resized_crop import random_resized_crop
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.data.bank.stratified_rows import StratifiedRows
from kdci.models import PixelModel
from kdci.models.states import State, Stateful
from kdci.substitution.base import SoftLabelCriterion, SourceContext, StratumOf, StudentCriterion

SYNTHESIS_SCALE = (0.75, 1.0)
"""Share of an image's area that the teacher is shown of it while it is synthesised."""
_STRATUM_BATCH = 512


class BankSource(Stateful):
    """Substitution images for distillation, made or chosen with the teacher's help alone.

    As it stands, the images of a bank that stays as it is, which is what a known shift needs; a
    method says how images come into it. What a method keeps beside it names in ``kept``.

    Attributes:
        context: Teacher, dataset, bank and seed.
        params: The method's block; anything with a ``temperature`` will do for soft labels.
        bank: The pool's images.
        random: CPU stream of everything the method draws.
        stratum_of: See ``stratify``; None: batches are drawn without strata.
        refresh_period: Distillation steps between two calls of ``refresh``; None: once an epoch.

    Args:
        context: What every method is built from.
        params: The method's block.
    """

    params: Any
    refresh_period: int | None = None

    def __init__(self, context: SourceContext, params: Any = None) -> None:
        self.context = context
        self.params = params
        self.bank = context.bank
        self.random = torch.Generator().manual_seed(context.seed)
        self._seed = context.seed
        self._rows = ShuffledRows(context.seed)
        self.stratum_of: StratumOf | None = None
        self._strata: StratifiedRows | None = None

    @property
    def num_open_world(self) -> int:
        """Images at the start of the bank that were chosen from the open world, not made."""
        return 0

    @property
    def num_preparations(self) -> int:
        """How many parts ``prepare`` has, for the progress display; 0: not known before."""
        return 0

    def prepare(self) -> Iterator[dict[str, float]]:
        """Do what needs no student, yielding metrics after each part that can be resumed.

        With a state loaded, goes on where that state was taken. Nothing is left to do once
        the iterator ends.
        """
        return iter(())

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Synthesise more, possibly adversarially to ``student``; nothing, for samplers.

        Called at the start of each distillation epoch, or every ``refresh_period`` steps.
        Leaves the student's weights, statistics and mode as they were. Returns metrics.
        """
        return {}

    def criterion(self) -> StudentCriterion:
        """Return the method's student loss, freshly initialised: of soft labels alone."""
        return SoftLabelCriterion(self.params.temperature)

    def adopt(self, bank: ImageBank, kept: Tensor) -> None:
        """Go on with another bank that holds some rows of the one so far.

        The pool is stored without its held-out part; this tells the method.

        Args:
            bank: The bank from now on.
            kept: Where its rows lay in the bank so far, ascending, (M,).
        """
        self.bank = bank

    def reseed(self, seed: int) -> None:
        """Start the random streams anew; what was made or chosen so far stays.

        Students that share a pool call this with seeds of their own, or they would all meet
        the same batches.
        """
        self.random.manual_seed(seed)
        self._seed = seed
        self._rows = ShuffledRows(seed)

    def stratify(self, stratum_of: StratumOf, *, max_repeats: float) -> None:
        """Draw batches evenly over strata from now on, and what joins later with them.

        Called before the first batch; after ``load_state_dict`` and ``reseed`` of a pool's state,
        before ``load_state_dict`` of a state taken with strata.

        Args:
            stratum_of: Tells the stratum of images, which are not augmented.
            max_repeats: How often an image may be drawn for each time that it would be without
                strata, at least 1; see ``kdci.data.bank.stratified_rows.stratum_shares``.
        """
        self.stratum_of = stratum_of
        self._strata = StratifiedRows(self._seed, max_repeats=max_repeats)

    def batch(self, size: int) -> Tensor:
        """Return augmented images, float32 in [0, 1], shape (size, C, H, W)."""
        return self.augment(self.draw(size)).float() / 255

    def draw(self, size: int) -> Tensor:
        """Return the next images of the bank in shuffled order, uint8 (size, C, H, W)."""
        images = self.bank.rows(self.next_rows(size, len(self.bank)))
        if self.context.device.type == "cuda":  # pinned, or the copy waits; untested
            images = images.pin_memory()
        return images.to(self.context.device, non_blocking=True)

    def next_rows(self, size: int, num_rows: int) -> Tensor:
        """Return the next of the first ``num_rows`` rows: shuffled, evenly over strata if asked.

        A row's stratum is found once, when it is first among those to draw from.
        """
        if self._strata is None or self.stratum_of is None:
            return self._rows.next(size, num_rows)
        new = torch.arange(len(self._strata), num_rows)
        for rows in torch.split(new, _STRATUM_BATCH) if len(new) else ():
            images = self.bank.rows(rows).to(self.context.device).float() / 255
            self._strata.extend(self.stratum_of(images))
        return self._strata.next(size)

    def augment(self, images_BCHW: Tensor) -> Tensor:
        """Crop and flip a batch, as far as the dataset allows; gradients pass through."""
        return augment(images_BCHW, self.context.spec, self.random)

    def view(self, images_BCHW: Tensor) -> Tensor:
        """Return images that are being synthesised as the teacher is shown them.

        As `augment` does, but for datasets of resized crops: there the boxes are nearly whole,
        as in Fast's ImageNet code, for what is learnt is the image and no small part of it.
        """
        spec = self.context.spec
        if spec.resized_crop is None:
            return self.augment(images_BCHW)
        return random_resized_crop(
            images_BCHW, scale=SYNTHESIS_SCALE, flip=spec.flip, generator=self.random
        )

    def state_dict(self) -> State:
        """Return all that resuming needs, the bank's images excepted (its length is in)."""
        state = {
            "num_rows": len(self.bank),
            "random": self.random.get_state(),
            "rows": self._rows.state_dict(),
        }
        strata = {} if self._strata is None else {"strata": self._strata.state_dict()}
        return {**state, **strata, **super().state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        self.bank.truncate(state["num_rows"])
        self.random.set_state(state["random"])
        self._rows.load_state_dict(state["rows"])
        if self._strata is not None and "strata" in state:
            self._strata.load_state_dict(state["strata"])
        super().load_state_dict(state)
