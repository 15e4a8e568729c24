"""CMI's synthesis (Fang et al., IJCAI 2021): a generator from scratch, two views, a memory."""

from __future__ import annotations

import random as python_random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.augmentation import crop_and_flip, resized_crop_and_flip
from benchmarks.reference.fast import decision_adversarial
from benchmarks.reference.hooks import MeanHook, StatisticsHook, norms_of
from benchmarks.reference.networks import Generator, Normalizer, ProjectionHead, device_of


def reset(generator: nn.Module, random: torch.Generator) -> None:
    """Start a generator anew."""
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            centre = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            noise = torch.randn(layer.weight.shape, generator=random)
            layer.weight.data.copy_(centre + 0.02 * noise)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class PlainCmi:
    """Makes one batch of images a call.

    Args:
        teacher: Hooked twice, in eval mode, not frozen.
        student: The adversary; None: the term is off.
        generator: Started anew at each call.
        head: Projects the concatenated features of the hooked layers.
        normalizer: Of the teacher's images.
        batch_size: Images a call.
        num_steps: K.
        memory: Local and global features of earlier images, (N, 2 d).
        num_negatives: Rows of the memory in each loss.
        latent_dim: Z.
        num_classes: Of the targets.
        feature_layers: Whose inputs describe an image; None: all BatchNorms.
        random: CPU stream of all that is drawn, the memory's rows excepted.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None,
        generator: Generator,
        head: ProjectionHead,
        normalizer: Normalizer,
        *,
        batch_size: int,
        num_steps: int,
        memory: Tensor,
        num_negatives: int,
        latent_dim: int = 256,
        num_classes: int = 10,
        feature_layers: Sequence[nn.Module] | None = None,
        random: torch.Generator,
    ) -> None:
        self.teacher, self.student, self.generator = teacher, student, generator.train()
        self.head, self.normalizer = head.train(), normalizer
        self.batch_size, self.num_steps, self.latent_dim = batch_size, num_steps, latent_dim
        self.memory, self.num_negatives = memory, num_negatives
        self.num_classes, self.random = num_classes, random
        layers = list(norms_of(teacher)) if feature_layers is None else feature_layers
        self.feature_hooks = [MeanHook(layer) for layer in layers]
        self.hooks = [StatisticsHook(layer) for layer in norms_of(teacher)]
        self.rate = 1e-3
        self.head_optimizer = torch.optim.Adam(head.parameters(), self.rate)

    def call(self) -> float:
        """Make a batch; return the loss of the best one."""
        self.teacher.eval()
        if self.student is not None:
            self.student.eval()
        reset(self.generator, self.random)
        latents = torch.randn(self.batch_size, self.latent_dim, generator=self.random)
        latents = latents.to(device_of(self.teacher)).requires_grad_()
        targets = torch.randint(self.num_classes, (self.batch_size,), generator=self.random)
        targets = targets.sort()[0].to(latents.device)
        fitted = [*self.generator.parameters(), latents]
        optimizer = torch.optim.Adam(fitted, self.rate, betas=(0.5, 0.999))
        best = float("inf")
        for _ in range(self.num_steps):
            images = self.generator(latents)
            loss = self.loss(images, targets)
            if loss.item() < best:
                best, self.images = loss.item(), images.data
            optimizer.zero_grad()
            self.head_optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            self.head_optimizer.step()
        if self.student is not None:
            self.student.train()
        return best

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images in [0, 1]."""
        views = self.normalizer(crop_and_flip(images, 4, self.random))
        local_views = self.normalizer(resized_crop_and_flip(images, (0.25, 1.0), self.random))
        logits, _features = self.teacher(views)
        statistics = torch.stack([hook.distance for hook in self.hooks]).sum()
        loss = statistics + F.cross_entropy(logits, targets)
        if self.student is not None:
            student_logits, _features = self.student(views)
            loss = loss + 0.5 * decision_adversarial(student_logits, logits)
        global_features = self._features()
        self.teacher(local_views)
        return loss + 0.8 * self._contrast(self._features(), global_features)

    def _features(self) -> Tensor:
        return torch.cat([hook.means for hook in self.feature_hooks], dim=1)

    def _contrast(self, local: Tensor, global_: Tensor) -> Tensor:
        """Tell each image apart from the batch and from rows of the memory."""
        count = min(self.num_negatives, len(self.memory))
        rows = python_random.sample(range(len(self.memory)), k=count)  # noqa: S311
        kept_local, kept_global = torch.chunk(self.memory[rows].to(local.device), 2, dim=1)
        projected = self.head(torch.cat([local, kept_local, global_, kept_global]))
        queries, keys = torch.chunk(projected, 2)
        similarities = queries @ keys.detach().T / 0.2
        labels = torch.arange(len(similarities), device=local.device)
        costs = F.cross_entropy(similarities, labels, reduction="none")
        if count == 0:
            return costs.mean()
        return costs[: self.batch_size].mean() + costs[self.batch_size :].mean()
