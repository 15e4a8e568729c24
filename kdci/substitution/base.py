"""What a data-free distillation method is, seen from the loop that all methods share.

A method brings substitution images (a ``SubstitutionSource``) and its own student loss (a
``StudentCriterion``). The loop can not tell generation from sampling, and nothing here
knows of the confounder dictionary: that is what lets KDCI combine with any method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel
from kdci.training.losses import soft_label_kl

if TYPE_CHECKING:
    from kdci.data.open_world.pool import OpenWorldPool

State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, strings and None; see ``kdci.store.checkpoints``."""

StratumOf = Callable[[Tensor], Tensor]
"""From images, float32 in [0, 1], (B, C, H, W), to the stratum of each, int64 from 0, (B,)."""


def no_open_world() -> OpenWorldPool:
    """Stand for the unlabelled pool where nothing may be chosen from it.

    Raises:
        ValueError: Always.
    """
    raise ValueError("there is no open world here")


@dataclass(frozen=True)
class SourceContext:
    """What every method is built from.

    Attributes:
        teacher: Frozen, in eval mode.
        spec: The dataset the teacher was trained on: classes, image shape, augmentation.
        bank: Where substitution images live; grows as a generating method refreshes.
        seed: Seed of the method's own random streams.
        teacher_accuracy: The teacher's accuracy as its card states it, strictly between 0 and 1;
            None: the card does not.
        open_world: Opens the unlabelled pool; only samplers call it.
        skipped: Receives how many of its images could not be used, by reason.
    """

    teacher: PixelModel
    spec: DatasetSpec
    bank: ImageBank
    seed: int
    teacher_accuracy: float | None
    open_world: Callable[[], OpenWorldPool] = no_open_world
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Device the teacher is on."""
        return next(self.teacher.parameters()).device


class StudentCriterion(nn.Module):
    """A method's student loss, as named terms that are summed.

    It may hold parameters of its own (DFND's noise matrix); ``learning_rate`` is then the
    rate of the Adam optimiser that trains them beside the student.
    """

    learning_rate: float = 0.0

    def forward(self, student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the loss, each a scalar.

        Args:
            student_logits_BK: Student logits, compensated where KDCI is on; (B, K).
            teacher_logits_BK: Teacher logits without gradient; (B, K).
        """
        raise NotImplementedError


class SoftLabelCriterion(StudentCriterion):
    """The student loss of methods that distil by soft labels alone.

    Args:
        temperature: T of the T^2-scaled divergence.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> dict[str, Tensor]:
        """Return the one term ``kl``; see the base class."""
        return {"kl": soft_label_kl(student_logits_BK, teacher_logits_BK, self.temperature)}


class SubstitutionSource(Protocol):
    """Substitution images for distillation, made or chosen with the teacher's help alone."""

    bank: ImageBank
    refresh_period: int | None
    """Distillation steps between two calls of ``refresh``; None: once an epoch."""

    @property
    def num_open_world(self) -> int:
        """Images at the start of the bank that were chosen from the open world, not made."""

    @property
    def num_preparations(self) -> int:
        """How many parts ``prepare`` has, for the progress display; 0: not known before."""

    def prepare(self) -> Iterator[dict[str, float]]:
        """Do what needs no student, yielding metrics after each part that can be resumed.

        With a state loaded, goes on where that state was taken. Nothing is left to do once
        the iterator ends.
        """

    def refresh(self, student: PixelModel) -> dict[str, float]:
        """Synthesise more, possibly adversarially to ``student``; a no-op for samplers.

        Called at the start of each distillation epoch, or every ``refresh_period`` steps.
        Leaves the student's weights, statistics and mode as they were. Returns metrics.
        """

    def adopt(self, bank: ImageBank, kept: Tensor) -> None:
        """Go on with another bank that holds some rows of the one so far.

        The pool is stored without its held-out part; this tells the method.

        Args:
            bank: The bank from now on.
            kept: Where its rows lay in the bank so far, ascending, (M,).
        """

    def reseed(self, seed: int) -> None:
        """Start the random streams anew; what was made or chosen so far stays.

        Students that share a pool call this with seeds of their own, or they would all meet
        the same batches.
        """

    def stratify(self, stratum_of: StratumOf, *, max_repeats: float) -> None:
        """Draw batches evenly over strata from now on, and what joins later with them.

        Called before the first batch; after ``load_state_dict`` and ``reseed`` of a pool's state,
        before ``load_state_dict`` of a state taken with strata.

        Args:
            stratum_of: Tells the stratum of images, which are not augmented.
            max_repeats: How often an image may be drawn for each time that it would be without
                strata, at least 1; see ``kdci.data.bank.stratified_rows.stratum_shares``.
        """

    def batch(self, size: int) -> Tensor:
        """Return augmented images, float32 in [0, 1], shape (size, C, H, W)."""

    def criterion(self) -> StudentCriterion:
        """Return the method's student loss, freshly initialised."""

    def state_dict(self) -> State:
        """Return all that resuming needs, the bank's images excepted (its length is in)."""

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``; the bank is cut back to the length it had then."""
