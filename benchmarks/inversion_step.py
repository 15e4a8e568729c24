"""A step that makes images: of a generator, of pixels, or of a game, against a student.

DFND makes none: what it does instead is ``benchmarks.pool_scoring``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks import bound
from benchmarks.case import Case
from benchmarks.interleaved import Action
from benchmarks.place import SHAPE, SPEC, Place
from benchmarks.reference.cmi import PlainCmi
from benchmarks.reference.dafl import PlainDafl
from benchmarks.reference.deepinv import PlainDeepInv
from benchmarks.reference.fast import PlainFast
from benchmarks.reference.image_files import batches
from benchmarks.reference.mosaick import PlainMosaick
from benchmarks.reference.networks import Generator, PatchDiscriminator, ProjectionHead
from kdci.methods.cmi import CmiSource
from kdci.models import build_backbone
from kdci.models.generators.generator import Generator as ProjectGenerator
from kdci.synthesis.instance_discrimination import ProjectionHead as ProjectHead
from kdci.synthesis.layer_features import feature_layers
from kdci.synthesis.patch_game import PatchDiscriminator as ProjectDiscriminator

_NEVER = 10**9
_PUBLISHED_BATCH = 256
_PUBLISHED_NEGATIVES = 4096
_PROJECTION = 256
_LATENTS = {"dafl": 512, "fast": 256, "cmi": 256, "mosaick": 100}
STEPS = 2
"""Steps of a call of Fast, CMI and DeepInv, which make 10, 200 and 1000 by default."""


def cases(*, quick: bool) -> list[Case]:
    """Return the step of every method that makes images."""
    if quick:
        return [_case(method, "wrn-10-1", "wrn-10-1", 4, 2) for method in _PROJECT]
    return [_case(method, "wrn-40-2", "wrn-16-1", 32, 5) for method in _PROJECT]


def _case(method: str, teacher: str, student: str, batch: int, repeats: int) -> Case:
    sizes = (teacher, student, batch)
    ways = {
        "project": partial(_PROJECT[method], *sizes),
        "plain": partial(_PLAIN[method], *sizes),
        "bound": partial(_bound, method, *sizes),
    }
    is_call = method in ("fast", "cmi", "deepinv")
    return Case(
        "inversion_step",
        method,
        teacher,
        student,
        batch,
        ways,
        steps=STEPS if is_call else 1,
        repeats=repeats,
        note=f"{negatives(batch)} negatives" if method == "cmi" else "",
    )


def negatives(batch: int) -> int:
    """Return as many of CMI's negatives as a batch of its published size has in proportion."""
    return _PUBLISHED_NEGATIVES * batch // _PUBLISHED_BATCH


# -- the project's own path ---------------------------------------------------------------


def _project_dafl(teacher: str, student: str, batch: int, place: Place) -> Action:
    values = {"batch_size": batch, "sample_every": 1, "skip_steps": _NEVER - 1}
    source = place.source("dafl", place.teacher(teacher), num_steps=_NEVER, **values)
    parts = source.prepare()
    return lambda: next(parts)


def _project_call(method: str, teacher: str, student: str, batch: int, place: Place) -> Action:
    """Calls of a method that makes a batch a call, with a student to work against."""
    frozen = place.teacher(teacher)
    values = {"num_negatives": negatives(batch)} if method == "cmi" else {}
    source = place.source(
        method, frozen, batch_size=batch, num_steps=STEPS, warmup_calls=0, **values
    )
    if isinstance(source, CmiSource):
        memory = source.discrimination.memory
        num_features = memory.rows.shape[2]
        memory.add(torch.rand(negatives(batch), 2, num_features))
    adversary = place.student(student)
    source.refresh(adversary)  # Fast's first call after the warm-up has no student
    return lambda: source.refresh(adversary)


def _project_mosaick(teacher: str, student: str, batch: int, place: Place) -> Action:
    source = place.source(
        "mosaick", place.teacher(teacher), num_selected=place.num_images, batch_size=batch
    )
    adversary = place.student(student)
    return lambda: source.refresh(adversary)


_Way = Callable[[str, str, int, Place], Action]
_PROJECT: dict[str, _Way] = {
    "dafl": _project_dafl,
    "fast": partial(_project_call, "fast"),
    "cmi": partial(_project_call, "cmi"),
    "deepinv": partial(_project_call, "deepinv"),
    "mosaick": _project_mosaick,
}


# -- the baselines ------------------------------------------------------------------------


def _plain_dafl(teacher: str, student: str, batch: int, place: Place) -> Action:
    plain = PlainDafl(
        place.plain(teacher, seed=0),
        Generator(_LATENTS["dafl"]).to(place.runtime.device),
        place.normalizer(),
        batch_size=batch,
        random=torch.Generator(),
    )
    return plain.step


def _plain_fast(teacher: str, student: str, batch: int, place: Place) -> Action:
    plain = PlainFast(
        place.plain(teacher, seed=0),
        place.plain(student, seed=1),
        Generator(_LATENTS["fast"]).to(place.runtime.device),
        place.normalizer(),
        batch_size=batch,
        num_steps=STEPS,
        random=torch.Generator(),
    )
    return plain.call


def _plain_cmi(teacher: str, student: str, batch: int, place: Place) -> Action:
    network = place.plain(teacher, seed=0)
    layers = feature_layers(network)
    num_features = _num_features(layers)
    plain = PlainCmi(
        network,
        place.plain(student, seed=1),
        Generator(_LATENTS["cmi"]).to(place.runtime.device),
        ProjectionHead(num_features, _PROJECTION).to(place.runtime.device),
        place.normalizer(),
        batch_size=batch,
        num_steps=STEPS,
        memory=torch.rand(negatives(batch), 2 * num_features),
        num_negatives=negatives(batch),
        feature_layers=layers,
        random=torch.Generator(),
    )
    return plain.call


def _num_features(layers: list[nn.Module]) -> int:
    """Return the channels that layers take: the BatchNorms' of a WRN, the stages' of a ResNet."""
    return sum(
        layer.num_features
        if isinstance(layer, nn.BatchNorm2d)
        else next(w for w in layer.parameters() if w.dim() == 4).shape[1]
        for layer in layers
    )


def _plain_deepinv(teacher: str, student: str, batch: int, place: Place) -> Action:
    plain = PlainDeepInv(
        place.plain(teacher, seed=0),
        place.plain(student, seed=1),
        place.normalizer(),
        batch_size=batch,
        num_steps=STEPS,
        random=torch.Generator(),
    )
    return plain.call


def _plain_mosaick(teacher: str, student: str, batch: int, place: Place) -> Action:
    plain = PlainMosaick(
        place.plain(teacher, seed=0),
        place.plain(student, seed=1),
        Generator(_LATENTS["mosaick"], large=True).to(place.runtime.device),
        PatchDiscriminator().to(place.runtime.device),
        place.normalizer(),
    )
    real = batches(
        place.png_folder(),
        batch_size=batch,
        mean=SPEC.mean,
        std=SPEC.std,
        threads=place.runtime.threads,
        augment=False,
    )
    device = place.runtime.device
    return lambda: plain.step(
        torch.randn(batch, _LATENTS["mosaick"]).to(device), next(real).to(device)
    )


_PLAIN: dict[str, _Way] = {
    "dafl": _plain_dafl,
    "fast": _plain_fast,
    "cmi": _plain_cmi,
    "deepinv": _plain_deepinv,
    "mosaick": _plain_mosaick,
}


# -- the bound ----------------------------------------------------------------------------


def _bound(method: str, teacher: str, student: str, batch: int, place: Place) -> Action:
    device = place.runtime.device
    build = partial(_bare, method, teacher, student, batch, device)
    return bound.fastest(build, device)[0]


def _bare(
    method: str,
    teacher: str,
    student: str,
    batch: int,
    device: torch.device,
    setting: bound.Setting,
) -> Action:
    """Return the passes that a method's steps can not do without, ``STEPS`` of them for a call."""
    judges = [
        setting.of(_frozen(name, device))
        for name in ([teacher] if method == "dafl" else [teacher, student])
    ]
    if method == "cmi":
        judges.append(judges[0])  # a second view
    generator, source = _maker(method, batch, device, setting)
    trained = [*generator.parameters()] if generator is not None else [source]
    extras = _extras(method, judges[0], batch, device, setting)

    def step() -> None:
        images = source if generator is None else generator(source)
        total = torch.stack([bound.logits_of(judge(images)).sum() for judge in judges]).sum()
        for extra in extras:
            total = total + extra(images)
        torch.autograd.grad(total, trained)

    def run() -> None:
        for _ in range(STEPS if method in ("fast", "cmi", "deepinv") else 1):
            step()

    return run


def _frozen(name: str, device: torch.device) -> nn.Module:
    network = build_backbone(name, num_classes=SPEC.num_classes, channels=SPEC.channels)
    return network.to(device).eval().requires_grad_(False)


def _maker(
    method: str, batch: int, device: torch.device, setting: bound.Setting
) -> tuple[nn.Module | None, Tensor]:
    """Return the generator and its latents, or None and pixels."""
    if method == "deepinv":
        return None, setting.images(batch, SHAPE, device).requires_grad_()
    generator = ProjectGenerator(
        latent_dim=_LATENTS[method],
        image_size=SPEC.image_size,
        channels=SPEC.channels,
        large=method == "mosaick",
    )
    latents = torch.randn(batch, _LATENTS[method], device=device, dtype=setting.dtype)
    return setting.of(generator.to(device)), latents


def _extras(
    method: str, teacher: nn.Module, batch: int, device: torch.device, setting: bound.Setting
) -> list[Callable[[Tensor], Tensor]]:
    """Return the passes of CMI's head and of MosaicKD's discriminator."""
    if method == "cmi":
        num_features = _num_features(feature_layers(teacher))
        head = setting.of(ProjectHead(num_features, _PROJECTION).to(device))
        rows = torch.rand(batch + negatives(batch), num_features, device=device).to(setting.dtype)

        def project(_images: Tensor) -> Tensor:
            with torch.no_grad():
                head(rows)
            queries = head(rows)
            torch.autograd.grad(queries.sum(), list(head.parameters()))
            return cast(Tensor, queries.detach().sum())

        return [project]
    if method == "mosaick":
        discriminator = setting.of(ProjectDiscriminator(channels=SPEC.channels).to(device))
        real = setting.images(batch, SHAPE, device)

        def judge(images: Tensor) -> Tensor:
            called = discriminator(images.detach()).sum() + discriminator(real).sum()
            torch.autograd.grad(called, list(discriminator.parameters()))
            return cast(Tensor, discriminator(images).sum())

        return [judge]
    return []
