"""Fast's synthesis (Fang et al., AAAI 2022): K steps of a copy of the meta generator."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.augmentation import crop_and_flip
from benchmarks.reference.hooks import StatisticsHook, norms_of
from benchmarks.reference.networks import Generator, Normalizer, device_of


def decision_adversarial(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return minus the divergence of the images that both nets put in the same class."""
    mask = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float()
    divergence = F.kl_div(
        F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1), reduction="none"
    )
    return -(divergence.sum(1) * mask).mean()


class PlainFast:
    """Makes one batch of images a call.

    Args:
        teacher: Hooked, in eval mode, not frozen.
        student: The adversary; None before distillation begins.
        generator: The meta generator.
        normalizer: Of the teacher's images.
        batch_size: Images a call.
        num_steps: K.
        latent_dim: Z.
        num_classes: Of the targets.
        random: CPU stream of all that is drawn.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None,
        generator: Generator,
        normalizer: Normalizer,
        *,
        batch_size: int,
        num_steps: int,
        latent_dim: int = 256,
        num_classes: int = 10,
        random: torch.Generator,
    ) -> None:
        self.teacher, self.student, self.generator = teacher, student, generator.train()
        self.normalizer = normalizer
        self.batch_size, self.num_steps, self.latent_dim = batch_size, num_steps, latent_dim
        self.num_classes, self.random = num_classes, random
        self.hooks = [StatisticsHook(layer, momentum=0.9) for layer in norms_of(teacher)]
        self.rate, self.latent_rate = 2e-3, 1e-2
        self.meta = torch.optim.Adam(
            generator.parameters(), self.rate * num_steps, betas=(0.5, 0.999)
        )

    def call(self) -> float:
        """Make a batch; return the loss of the best one."""
        self.teacher.eval()
        if self.student is not None:
            self.student.eval()
        latents = torch.randn(self.batch_size, self.latent_dim, generator=self.random)
        latents = latents.to(device_of(self.teacher)).requires_grad_()
        targets = torch.randint(self.num_classes, (self.batch_size,), generator=self.random)
        targets = targets.to(latents.device)
        fast = copy.deepcopy(self.generator)
        groups: list[dict[str, Any]] = [
            {"params": fast.parameters()},
            {"params": [latents], "lr": self.latent_rate},
        ]
        optimizer = torch.optim.Adam(groups, lr=self.rate, betas=(0.5, 0.999))
        best = float("inf")
        for step in range(self.num_steps):
            images = fast(latents)
            loss = self.loss(images, targets)
            if loss.item() < best:
                best, self.images = loss.item(), images.data
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._learn(fast, first=step == 0)
            optimizer.step()
        self.meta.step()
        for hook in self.hooks:
            hook.remember()
        if self.student is not None:
            self.student.train()
        return best

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the inversion loss of images in [0, 1]."""
        views = self.normalizer(crop_and_flip(images, 4, self.random))
        logits, _features = self.teacher(views)
        statistics = torch.stack([hook.distance for hook in self.hooks]).sum()
        loss = 10 * statistics + 0.4 * F.cross_entropy(logits, targets)
        if self.student is not None:
            student_logits, _features = self.student(views)
            loss = loss + 1.1 * decision_adversarial(student_logits, logits)
        return loss

    def _learn(self, fast: Generator, *, first: bool) -> None:
        """Add the copy's gradients to the meta generator's."""
        if first:
            self.meta.zero_grad()
        for weight, adapted in zip(self.generator.parameters(), fast.parameters(), strict=True):
            assert adapted.grad is not None
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.add_(adapted.grad)
