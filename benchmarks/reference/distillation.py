"""The student's step of the baselines.

The teacher runs without gradient, but its hooks fire; agreement and divergence are taken a second
time for the log.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the student's and the teacher's logits, (B, K) each, to the loss."""


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(p_T || p_S), summed over classes, mean over the batch."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean")


def soft_labels(temperature: float) -> Loss:
    """Return the loss of DAFL, Fast, CMI, DeepInv and MosaicKD."""
    return lambda student, teacher: kl_divergence(student, teacher, temperature)


class NoisyLabels(nn.Module):
    """DFND's loss; the noise matrix is put together row by row at every step.

    Args:
        num_classes: K.
        teacher_accuracy: The matrix's diagonal.
        temperature: Of the divergence.
    """

    def __init__(self, num_classes: int, teacher_accuracy: float, temperature: float = 4.0) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_classes, num_classes - 1))
        self.accuracy = teacher_accuracy
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return KL + NLL of the teacher's label."""
        rows = []
        for index in range(len(self.scores)):
            errors = (1 - self.accuracy) * F.softmax(self.scores[index], dim=0)
            correct = torch.full((1,), self.accuracy, device=errors.device)
            rows.append(torch.cat([errors[:index], correct, errors[index:]]))
        noisy = F.softmax(student_logits, dim=1) @ torch.stack(rows)
        nll = F.nll_loss(torch.log(noisy), teacher_logits.argmax(dim=1))
        return kl_divergence(student_logits, teacher_logits, self.temperature) + nll


class PlainDistillation:
    """Takes one step of the student after the other.

    Attributes:
        agreed: Images on which the two nets agreed, for the log; with ``seen`` images in all.
        divergence: Sum of the divergences, for the log.

    Args:
        teacher: In eval mode, hooks and all.
        student: Trained in place.
        loss: May hold parameters, which Adam then trains.
        learning_rate: SGD's.
        momentum: SGD's.
        weight_decay: SGD's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        loss: Loss,
        *,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
    ) -> None:
        self.teacher, self.student, self.loss = teacher.eval(), student.train(), loss
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(
                student.parameters(), learning_rate, momentum=momentum, weight_decay=weight_decay
            )
        ]
        if isinstance(loss, nn.Module):
            self.optimizers.append(torch.optim.Adam(loss.parameters(), 1e-3))
        self.agreed = self.seen = 0
        self.divergence = 0.0

    def step(self, images: Tensor) -> float:
        """Distil on normalised images (B, 3, H, W); return the loss."""
        with torch.no_grad():
            teacher_logits, _features = self.teacher(images)
        student_logits, _features = self.student(images)
        loss = self.loss(student_logits, teacher_logits)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self._log(student_logits.detach(), teacher_logits)
        return loss.item()

    def _log(self, student_logits: Tensor, teacher_logits: Tensor) -> None:
        classes = student_logits.topk(min(5, student_logits.shape[1]), dim=1).indices
        self.agreed += int((classes[:, 0] == teacher_logits.argmax(dim=1)).sum())
        self.seen += len(classes)
        divergence = kl_divergence(student_logits, teacher_logits, 1.0)
        self.divergence += divergence.item() * len(classes)
