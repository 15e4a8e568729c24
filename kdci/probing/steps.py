"""The steps that training and synthesis are made of, each as the methods take it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.augmentation import augment
from kdci.models.generators.generator import ADAM_BETAS, DaflGenerator, Generator
from kdci.models.generators.projection_head import ProjectionHead
from kdci.probing.subjects import Kind, Subject
from kdci.synthesis.feature_memory import FeatureMemory
from kdci.synthesis.instance_discrimination import InstanceDiscrimination
from kdci.synthesis.inversion import BatchNormStatistics
from kdci.training.losses import bn_statistics_loss, patch_loss
from kdci.training.optimizers import SGD, Adam
from kdci.training.runtime import Runtime

Step = Callable[[int], None]
"""Takes one step on a batch of so many images."""


def step_of(kind: Kind, subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Return a step of a subject; the module is put into the mode that the step needs.

    Args:
        kind: See ``kdci.probing.subjects.Work``.
        subject: What the module was built as.
        module: Trained in place, where the step trains.
        runtime: Where it is.
    """
    set_mode(kind, module)
    return _STEPS[kind](subject, module, runtime)


def set_mode(kind: Kind, module: nn.Module) -> None:
    """Put a module into the mode that a kind of step needs; several kinds may share one."""
    module.train(kind not in ("forward", "differentiate", "invert"))
    module.requires_grad_(kind not in ("differentiate", "invert"))


def _forward(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    images_of = _images(subject.spec, runtime.device)

    @torch.no_grad()
    def step(batch: int) -> None:
        module(images_of(batch).float() / 255)

    return step


def _train(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of a student or a teacher: augmented images, a loss, SGD with momentum."""
    spec, images_of = subject.spec, _images(subject.spec, runtime.device)
    random = torch.Generator().manual_seed(0)
    optimizer = SGD(module.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step(batch: int) -> None:
        images = augment(images_of(batch), spec, random).float() / 255
        loss = F.cross_entropy(module(images).logits, _labels(batch, runtime.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        optimizer.step()

    return step


def _differentiate(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of a frozen network that a generator or pixels are fitted to."""
    spec, images_of = subject.spec, _images(subject.spec, runtime.device)
    random = torch.Generator().manual_seed(0)

    def step(batch: int) -> None:
        images = (images_of(batch).float() / 255).requires_grad_()
        logits = module(augment(images, spec, random)).logits
        loss = F.cross_entropy(logits, _labels(batch, runtime.device))
        torch.autograd.grad(loss, [images])

    return step


def _invert(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of a frozen teacher whose BatchNorm statistics are compared."""
    spec, images_of = subject.spec, _images(subject.spec, runtime.device)
    random = torch.Generator().manual_seed(0)
    statistics = BatchNormStatistics(module)

    def step(batch: int) -> None:
        images = (images_of(batch).float() / 255).requires_grad_()
        with statistics:
            logits = module(augment(images, spec, random)).logits
            loss = F.cross_entropy(logits, _labels(batch, runtime.device)) + bn_statistics_loss(
                statistics.means,
                statistics.variances,
                statistics.running_means,
                statistics.running_variances,
            )
            torch.autograd.grad(loss, [images])

    return step


def _fit(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of a generator: images, their gradient to weights and latents, Adam."""
    generator = cast("Generator | DaflGenerator", module)
    weights = list(generator.parameters())
    optimizer = Adam(weights, lr=1e-6, betas=ADAM_BETAS)

    def step(batch: int) -> None:
        latents = torch.randn(batch, *generator.latent_shape).to(runtime.device).requires_grad_()
        # The sum's gradient is one for each pixel, as dense as a teacher's.
        gradients = torch.autograd.grad(generator(latents).sum(), [*weights, latents])
        for weight, gradient in zip(weights, gradients[:-1], strict=True):
            weight.grad = gradient
        optimizer.step()

    return step


def _generate(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    generator = cast("Generator | DaflGenerator", module)

    @torch.no_grad()
    def step(batch: int) -> None:
        generator(torch.randn(batch, *generator.latent_shape).to(runtime.device))

    return step


def _play(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of MosaicKD's discriminator: its own step, then the gradient it gives to made images."""
    images_of = _images(subject.spec, runtime.device)
    weights = list(module.parameters())
    optimizer = Adam(weights, lr=1e-6, betas=ADAM_BETAS)

    def step(batch: int) -> None:
        real = images_of(batch).float() / 255
        made = real.clone().requires_grad_()
        judged = patch_loss(module(made.detach()), real=False)
        judged = (judged + patch_loss(module(real), real=True)) / 2
        for weight, gradient in zip(weights, torch.autograd.grad(judged, weights), strict=True):
            weight.grad = gradient
        optimizer.step()
        torch.autograd.grad(patch_loss(module(made), real=True), [made])

    return step


def _contrast(subject: Subject, module: nn.Module, runtime: Runtime) -> Step:
    """Of CMI's head: the loss of a batch against earlier images, and a step of Adam."""
    head = cast(ProjectionHead, module)
    num_features, num_negatives = head.hidden.in_features, subject.sizes[1]
    memory = FeatureMemory(max(num_negatives, 1), num_features)
    memory.add(torch.rand(max(num_negatives, 1), 2, num_features))
    discrimination = InstanceDiscrimination(
        head, memory, learning_rate=1e-6, temperature=0.2, num_negatives=num_negatives
    )
    random = torch.Generator().manual_seed(0)
    weights = list(head.parameters())

    def step(batch: int) -> None:
        features = torch.rand(batch, num_features, device=runtime.device).requires_grad_()
        loss = discrimination.loss(features, features.detach(), random)
        gradients = torch.autograd.grad(loss, [features, *weights])
        for weight, gradient in zip(weights, gradients[1:], strict=True):
            weight.grad = gradient
        discrimination.learn()

    return step


_STEPS: dict[Kind, Callable[[Subject, nn.Module, Runtime], Step]] = {
    "forward": _forward,
    "train": _train,
    "differentiate": _differentiate,
    "invert": _invert,
    "fit": _fit,
    "generate": _generate,
    "play": _play,
    "contrast": _contrast,
}


def _images(spec: DatasetSpec, device: torch.device) -> Callable[[int], Tensor]:
    """Return what makes batches of random bytes, each size once."""

    @cache
    def images_of(batch: int) -> Tensor:
        shape = (batch, spec.channels, spec.image_size, spec.image_size)
        random = torch.Generator().manual_seed(batch)
        return torch.randint(256, shape, dtype=torch.uint8, generator=random).to(device)

    return images_of


def _labels(batch: int, device: torch.device) -> Tensor:
    return torch.zeros(batch, dtype=torch.int64, device=device)
