"""MosaicKD's game step (Fang et al., NeurIPS 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.networks import Generator, Normalizer, PatchDiscriminator, device_of


def _called(logits: Tensor, *, real: bool) -> Tensor:
    labels = torch.ones_like(logits) if real else torch.zeros_like(logits)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


class PlainMosaick:
    """The discriminator's step, then the generator's on the same images.

    Args:
        teacher: In eval mode, not frozen.
        student: The adversary, in eval mode, not frozen; None: the term is off.
        generator: Trained in place.
        discriminator: Trained in place.
        normalizer: Of the teacher's images.
        latent_dim: Z.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None,
        generator: Generator,
        discriminator: PatchDiscriminator,
        normalizer: Normalizer,
        *,
        latent_dim: int = 100,
    ) -> None:
        self.teacher, self.student = teacher.eval(), student
        self.generator, self.discriminator = generator.train(), discriminator.train()
        self.normalizer, self.latent_dim = normalizer, latent_dim
        self.generator_optimizer, self.discriminator_optimizer = (
            torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.999))
            for net in (generator, discriminator)
        )

    def step(self, latents: Tensor, real: Tensor) -> tuple[float, float]:
        """Take a step; return the discriminator's loss and the generator's.

        Args:
            latents: (B, Z).
            real: As many normalised open-world images.
        """
        if self.student is not None:
            self.student.eval()
        images = self.normalizer(self.generator(latents))
        made_logits, real_logits = self.discriminator(images.detach()), self.discriminator(real)
        calls = _called(made_logits, real=False) + _called(real_logits, real=True)
        discriminator_loss = calls / (2 * len(made_logits))
        self.discriminator_optimizer.zero_grad()
        discriminator_loss.backward()  # type: ignore[no-untyped-call]
        self.discriminator_optimizer.step()
        generator_loss = self._generator_loss(images)
        self.generator_optimizer.zero_grad()
        generator_loss.backward()  # type: ignore[no-untyped-call]
        self.generator_optimizer.step()
        return discriminator_loss.item(), generator_loss.item()

    def _generator_loss(self, images: Tensor) -> Tensor:
        logits, _features = self.teacher(images)
        predictions = F.softmax(logits, dim=1)
        mean = predictions.mean(0)
        made_logits = self.discriminator(images)
        local = _called(made_logits, real=True) / len(made_logits)
        align = -(predictions * F.log_softmax(logits, dim=1)).sum(1).mean()
        balance = (mean * torch.log2(mean)).sum()
        loss = local + align + 10 * balance
        if self.student is not None:
            student_logits, _features = self.student(images)
            log_student = F.log_softmax(student_logits, dim=1)
            loss = loss - F.kl_div(log_student, predictions, reduction="batchmean")
        return loss

    @torch.no_grad()
    def sample(self, size: int) -> Tensor:
        """Return fresh normalised images for the student, (size, 3, H, W)."""
        latents = torch.randn(size, self.latent_dim).to(device_of(self.teacher))
        return self.normalizer(self.generator(latents))
