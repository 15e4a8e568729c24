"""DAFL's generator step (Chen et al., ICCV 2019; Fast-Datafree's variant).

The BatchNorm hooks are on the teacher here, too: their sum enters the loss with weight 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.hooks import StatisticsHook, norms_of
from benchmarks.reference.networks import Generator, Normalizer, device_of


class PlainDafl:
    """A generator that is trained by the teacher's answers.

    Args:
        teacher: Classifier of normalised images; hooked, in eval mode, not frozen.
        generator: Trained in place.
        normalizer: Of the teacher's images.
        batch_size: Images a step.
        latent_dim: Z.
        learning_rate: Adam's.
        random: CPU stream of the latents.
    """

    def __init__(
        self,
        teacher: nn.Module,
        generator: Generator,
        normalizer: Normalizer,
        *,
        batch_size: int,
        latent_dim: int = 512,
        learning_rate: float = 1e-3,
        random: torch.Generator,
    ) -> None:
        self.teacher, self.generator = teacher.eval(), generator.train()
        self.normalizer = normalizer
        self.batch_size, self.latent_dim, self.random = batch_size, latent_dim, random
        self.hooks = [StatisticsHook(layer) for layer in norms_of(teacher)]
        self.optimizer = torch.optim.Adam(generator.parameters(), learning_rate, betas=(0.5, 0.999))

    def step(self) -> float:
        """Take a step of the generator; return its loss."""
        self.optimizer.zero_grad()
        latents = torch.randn(self.batch_size, self.latent_dim, generator=self.random)
        latents = latents.to(device_of(self.teacher))
        logits, features = self.teacher(self.normalizer(self.generator(latents)))
        statistics = torch.stack([hook.distance for hook in self.hooks]).sum()
        one_hot = F.cross_entropy(logits, logits.argmax(dim=1))
        activation = -features.abs().mean()
        mean = F.softmax(logits, dim=1).mean(0)
        balance = (mean * torch.log(mean)).sum()
        loss = 0 * statistics + one_hot + 1e-3 * activation + 20 * balance
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def sample(self, size: int) -> Tensor:
        """Return fresh normalised images for the student, (size, 3, H, W)."""
        latents = torch.randn(size, self.latent_dim).to(device_of(self.teacher))
        return self.normalizer(self.generator(latents))
