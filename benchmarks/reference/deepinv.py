"""DeepInversion's synthesis (Yin et al., CVPR 2020; CMI's variant): pixels from noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.hooks import StatisticsHook, norms_of
from benchmarks.reference.networks import Normalizer, device_of


def js_competition(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return minus the Jensen-Shannon divergence of the two nets' softened predictions."""
    student = F.softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    middle = torch.log((student + teacher) / 2)
    divergences = [F.kl_div(middle, each, reduction="batchmean") for each in (teacher, student)]
    return -0.5 * (divergences[0] + divergences[1])


class PlainDeepInv:
    """Makes one batch of images a call.

    Args:
        teacher: Hooked, in eval mode, not frozen.
        student: The competitor; None: plain DeepInversion.
        normalizer: Of the teacher's images, which are optimised on its scale.
        batch_size: Images a call.
        num_steps: K.
        num_classes: Of the targets.
        image_size: Side in pixels.
        random: CPU stream of all that is drawn.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None,
        normalizer: Normalizer,
        *,
        batch_size: int,
        num_steps: int,
        num_classes: int = 10,
        image_size: int = 32,
        random: torch.Generator,
    ) -> None:
        self.teacher, self.student, self.normalizer = teacher, student, normalizer
        self.batch_size, self.num_steps = batch_size, num_steps
        self.num_classes, self.image_size, self.random = num_classes, image_size, random
        self.hooks = [StatisticsHook(layer) for layer in norms_of(teacher)]

    def call(self) -> float:
        """Make a batch; return the loss of the best one."""
        self.teacher.eval()
        if self.student is not None:
            self.student.eval()
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        device = device_of(self.teacher)
        pixels = torch.randn(shape, generator=self.random).to(device).requires_grad_()
        targets = (
            torch.randint(self.num_classes, shape[:1], generator=self.random).sort()[0].to(device)
        )
        optimizer = torch.optim.Adam([pixels], lr=0.1, betas=(0.5, 0.99))
        best = float("inf")
        for _ in range(self.num_steps):
            loss = self.loss(pixels, targets)
            if loss.item() < best:
                best, self.images = loss.item(), pixels.data.clone()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for channel, (mean, std) in enumerate(
                zip(self.normalizer.mean, self.normalizer.std, strict=True)
            ):
                pixels.data[:, channel].clamp_(-mean / std, (1 - mean) / std)
        if self.student is not None:
            self.student.train()
        return best

    def loss(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of normalised pixels, shifted and perhaps mirrored as one."""
        views = self._jitter(pixels)
        logits, _features = self.teacher(views)
        statistics = torch.stack([hook.distance for hook in self.hooks]).sum()
        loss = 10 * statistics + F.cross_entropy(logits, targets)
        if self.student is not None:
            student_logits, _features = self.student(views)
            loss = loss + js_competition(student_logits, logits, 3.0)
        return loss

    def _jitter(self, pixels: Tensor) -> Tensor:
        limit = self.image_size // 8
        shifts = [
            int(torch.randint(-limit, limit + 1, (), generator=self.random)) for _ in range(2)
        ]
        views = torch.roll(pixels, shifts, dims=(2, 3))
        return views.flip(3) if int(torch.randint(2, (), generator=self.random)) else views
