"""What is probed: a network of some role for images of some dataset, and a step it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from kdci.config.catalog import DatasetSpec
from kdci.models.generators.generating import Arithmetic, BesideTeacher
from kdci.models.generators.generator import DaflGenerator, Generator
from kdci.models.generators.patch_discriminator import PatchDiscriminator
from kdci.models.generators.projection_head import ProjectionHead
from kdci.models.pretrained import build_network
from kdci.synthesis.layer_features import LayerFeatures, feature_layers
from kdci.training.runtime import Runtime

Role = Literal["backbone", "generator", "discriminator", "head"]
Kind = Literal["forward", "train", "differentiate", "invert", "fit", "generate", "play", "contrast"]


@dataclass(frozen=True)
class Subject:
    """A network with random weights.

    Attributes:
        role: What it is.
        name: Of a backbone, also that whose features a head projects; of a generator `small`,
            `large` or `original`.
        spec: The images it takes or makes.
        stem: Of the backbone.
        sizes: Of a generator latent_dim and width; of a discriminator width; of a head
            projection_dim and the number of negatives.
    """

    role: Role
    name: str
    spec: DatasetSpec
    stem: str = "cifar"
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.role == "backbone":
            return self.name
        return f"{self.role} of {self.name}" if self.role == "head" else f"{self.name} {self.role}"


@dataclass(frozen=True)
class Work:
    """A step on a batch.

    Attributes:
        kind: `forward`: predictions without gradient. `train`: a step of SGD. `differentiate`:
            forward, and backward to the images. `invert`: the same with the batch statistics of
            BatchNorm compared. `fit`: a generator's forward, backward and Adam. `generate`: its
            forward alone. `play`: a discriminator's step, and its judgement of made images with
            their gradient. `contrast`: CMI's loss with a step of its head.
        subject: The network.
        batch: Number of images.
    """

    kind: Kind
    subject: Subject
    batch: int


def build_subject(subject: Subject, runtime: Runtime) -> nn.Module:
    """Build a subject with random weights, which do not move the global random stream.

    Raises:
        UserError: A backbone of another library is unknown or does not fit the images.
    """
    spec = subject.spec
    if subject.role == "backbone":
        return _backbone(subject, runtime)
    if subject.role == "head":
        num_features = count_features(subject, runtime)
        with torch.random.fork_rng(devices=[]):
            return _beside(ProjectionHead(num_features, subject.sizes[0]), runtime)
    with torch.random.fork_rng(devices=[]):
        if subject.role == "discriminator":
            (width,) = subject.sizes
            built: BesideTeacher = PatchDiscriminator(channels=spec.channels, width=width)
        else:
            built = _generator(subject)
    return _beside(built, runtime)


def _beside(network: BesideTeacher, runtime: Runtime) -> nn.Module:
    """Return a network that computes as the teacher beside it does."""
    network.arithmetic = Arithmetic(runtime.autocast_dtype, runtime.format.channels_last)
    return network.to(runtime.device)


def _backbone(subject: Subject, runtime: Runtime) -> nn.Module:
    return build_network(
        subject.name,
        subject.spec,
        seed=0,
        stem=subject.stem,
        device=runtime.device,
        autocast_dtype=runtime.autocast_dtype,
        channels_last=runtime.format.channels_last,
    )


def _generator(subject: Subject) -> BesideTeacher:
    latent_dim, width = subject.sizes
    size, channels = subject.spec.image_size, subject.spec.channels
    if subject.name == "original":
        return DaflGenerator(latent_dim=latent_dim, image_size=size, channels=channels, width=width)
    return Generator(
        latent_dim=latent_dim,
        image_size=size,
        channels=channels,
        width=width,
        large=subject.name == "large",
    )


def count_features(subject: Subject, runtime: Runtime) -> int:
    """Return how many features CMI reads of an image in a backbone."""
    model, spec = _backbone(subject, runtime).eval(), subject.spec
    blank = torch.zeros(1, spec.channels, spec.image_size, spec.image_size, device=runtime.device)
    with torch.no_grad(), LayerFeatures(feature_layers(model)) as layers:
        model(blank)
        return layers.features.shape[1]
