"""What methods that keep their images in a bank share: random streams, batches, their state."""

from __future__ import annotations

import torch
from torch import Tensor

from kdci.data.bank.augmentation import augment
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.resized_crop import random_resized_crop
from kdci.data.bank.shuffled_rows import ShuffledRows
from kdci.data.bank.stratified_rows import StratifiedRows
from kdci.substitution.base import SourceContext, State, StratumOf

SYNTHESIS_SCALE = (0.75, 1.0)
"""Share of an image's area that the teacher is shown of it while it is synthesised."""
_STRATUM_BATCH = 512


class BankSource:
    """The part of ``SubstitutionSource`` that has nothing to do with how images are made.

    Attributes:
        context: Teacher, dataset, bank and seed.
        bank: The pool's images.
        random: CPU stream of everything the method draws.
        refresh_period: See the protocol; None: once an epoch.

    Args:
        context: What every method is built from.
    """

    refresh_period: int | None = None

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        self.bank = context.bank
        self.random = torch.Generator().manual_seed(context.seed)
        self._seed = context.seed
        self._rows = ShuffledRows(context.seed)
        self.stratum_of: StratumOf | None = None
        self._strata: StratifiedRows | None = None

    @property
    def num_open_world(self) -> int:
        """Images at the start of the bank that were chosen and not made."""
        return 0

    def adopt(self, bank: ImageBank, kept: Tensor) -> None:
        """Go on with ``bank``, whose rows are the rows ``kept`` of the bank so far."""
        self.bank = bank

    def reseed(self, seed: int) -> None:
        """Start the random streams anew; see the protocol."""
        self.random.manual_seed(seed)
        self._seed = seed
        self._rows = ShuffledRows(seed)

    def stratify(self, stratum_of: StratumOf, *, max_repeats: float) -> None:
        """Draw evenly over strata from now on; see the protocol."""
        self.stratum_of = stratum_of
        self._strata = StratifiedRows(self._seed, max_repeats=max_repeats)

    def batch(self, size: int) -> Tensor:
        """Return augmented images of the bank; see the protocol."""
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
        """Return the random streams and the bank's length; methods add their own."""
        state = {
            "num_rows": len(self.bank),
            "random": self.random.get_state(),
            "rows": self._rows.state_dict(),
        }
        return state if self._strata is None else {**state, "strata": self._strata.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
        self.bank.truncate(state["num_rows"])
        self.random.set_state(state["random"])
        self._rows.load_state_dict(state["rows"])
        if self._strata is not None and "strata" in state:
            self._strata.load_state_dict(state["strata"])
