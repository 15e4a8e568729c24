"""DFND: the open-world images that the teacher is surest of, and a student loss for noise.

Chen et al., "Learning Student Networks in the Wild", CVPR 2021. Selection needs no student
and makes no attempt at balance between classes; what the teacher prefers is what is drawn.
The student's loss allows for the teacher being wrong on foreign images: a learned matrix Q
turns the student's class probabilities into those of the teacher's noisy labels.

Where this differs from the authors' public code, on purpose: all images meet the teacher's
own normalisation, and the diagonal of Q is the accuracy of the teacher at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdci.config.block import Count, Fraction, Positive
from kdci.config.open_world import OpenWorld
from kdci.data.open_world.scores import OpenWorldScores
from kdci.errors import UserError
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext, StudentCriterion
from kdci.substitution.block import MethodBlock
from kdci.training.losses import one_hot_costs, soft_label_kl


class NoisyStudentCriterion(StudentCriterion):
    """T^2-scaled KL, and NLL of the teacher's label under the student seen through noise.

    Row i of the matrix Q in R^{K x K} says what the teacher calls an image of class i: the
    true class with probability a, the others with (1 - a) softmax(A_i). A starts at 0, that
    is, errors spread evenly. Q only explains labels while training; it is no part of the
    student.

    Args:
        num_classes: Number of classes K, at least 2.
        teacher_accuracy: a, a fraction strictly between 0 and 1, so that log Q is finite.
        temperature: T of the KL term.
        learning_rate: Adam rate of A.

    Raises:
        ValueError: ``num_classes`` or ``teacher_accuracy`` is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        teacher_accuracy: float,
        temperature: float = 4.0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 < teacher_accuracy < 1:
            raise ValueError(
                "teacher_accuracy must be a fraction strictly between 0 and 1, "
                f"got {teacher_accuracy}"
            )
        self.teacher_accuracy = teacher_accuracy
        self.temperature = temperature
        self.learning_rate = learning_rate
        self.noise_scores = nn.Parameter(torch.zeros(num_classes, num_classes - 1))

    def log_noise(self) -> Tensor:
        """Return log Q, (K, K): row i is the true class, column j the teacher's label."""
        log_errors = F.log_softmax(self.noise_scores, dim=1) + math.log1p(-self.teacher_accuracy)
        num_classes = len(log_errors)
        classes = torch.arange(num_classes, device=log_errors.device)
        # A leaves out the diagonal, so the columns right of it sit one place to the left.
        column_KK = classes - (classes > classes[:, None]).long()
        spread_KK = log_errors.gather(1, column_KK.clamp(max=num_classes - 2))
        log_correct = math.log(self.teacher_accuracy)
        return spread_KK.masked_fill(classes == classes[:, None], log_correct)

    def forward(self, student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> dict[str, Tensor]:
        """Return the terms ``kl`` and ``nll``; see the base class."""
        labels_B = teacher_logits_BK.argmax(dim=1)
        # log (p_S Q)[label], as a sum over the true class; only the label's column is needed.
        log_joint_BK = F.log_softmax(student_logits_BK, dim=1) + self.log_noise().T[labels_B]
        return {
            "kl": soft_label_kl(student_logits_BK, teacher_logits_BK, self.temperature),
            "nll": -log_joint_BK.logsumexp(dim=1).mean(),
        }


class Dfnd(MethodBlock):
    """DFND (CVPR 2021)."""

    part_counts: ClassVar[Mapping[str, int]] = {"num_selected": 256}

    num_selected: Count
    """Images kept of the open-world pool, those the teacher is surest of."""
    teacher_accuracy: Fraction | Literal["auto"] = "auto"
    """Diagonal a of the noise matrix; `auto`: as the teacher's card says."""
    temperature: Positive = 4.0
    """T of the student's KL term."""
    noise_learning_rate: Positive = 1e-3
    """Adam's rate for the noise matrix."""
    score_batch_size: Count = 512
    """Images the teacher scores at once."""
    open_world: OpenWorld = OpenWorld()
    """The unlabelled images to choose from."""

    def source(self, context: SourceContext) -> DfndSource:
        """Build the source; see the base class."""
        return DfndSource(context, self)

    @property
    def num_pool_images(self) -> int:
        """The chosen images."""
        return self.num_selected


class DfndSource(BankSource):
    """Substitution images by DFND; see the module's docstring and ``BankSource``.

    Args:
        context: Teacher, dataset, bank, seed, and what opens the unlabelled pool.
        params: The method's values.

    Raises:
        UserError: ``teacher_accuracy`` is `auto`, and the context does not know it.
    """

    kept = ("_scores",)
    params: Dfnd

    def __init__(self, context: SourceContext, params: Dfnd) -> None:
        super().__init__(context, params)
        self._scores = OpenWorldScores(
            "dfnd",
            name="score",
            score=one_hot_costs,
            keep="lowest",
            num_selected=params.num_selected,
            batch_size=params.score_batch_size,
            skipped=context.skipped,
        )
        stated = params.teacher_accuracy
        self.teacher_accuracy = _known(
            context.teacher_accuracy if isinstance(stated, str) else stated
        )
        self.criterion()  # refuses a bad accuracy now, not after hours of scoring

    @property
    def num_open_world(self) -> int:
        """All of the bank."""
        return len(self.bank)

    def prepare(self) -> Iterator[dict[str, float]]:
        """Score the pool, then keep the images with the lowest scores; see the base class.

        Yields:
            ``scored`` (images so far) and ``score`` (their mean -log max p_T, in nats);
            at the end ``bank`` and ``selected_score``, the mean over the kept images.

        Raises:
            UserError: The pool has fewer images than are to be selected, or too many bad ones.
            NumericError: The teacher's prediction is not finite.
        """
        return self._scores.choose(self.context.open_world, self.context.teacher, self.bank)

    def criterion(self) -> StudentCriterion:
        """Return the student loss with an even noise matrix, on the teacher's device."""
        return NoisyStudentCriterion(
            self.context.spec.num_classes,
            teacher_accuracy=self.teacher_accuracy,
            temperature=self.params.temperature,
            learning_rate=self.params.noise_learning_rate,
        ).to(self.context.device)


def _known(teacher_accuracy: float | None) -> float:
    if teacher_accuracy is None:
        raise UserError(
            "methods.dfnd.teacher_accuracy",
            "auto needs the teacher's accuracy, which its card does not state",
            "give it as a fraction, or import the teacher with --data",
        )
    return teacher_accuracy
