"""What a data-free distillation method is, seen from the loop that all methods share.

A method brings substitution images (a ``BankSource``) and its own student loss (a
``StudentCriterion``). The loop can not tell generation from sampling, and nothing here
knows of the confounder dictionary: that is what lets KDCI combine with any method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel
from kdci.training.losses import soft_label_kl

if TYPE_CHECKING:
    from kdci.data.open_world.pool import OpenWorldPool

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
