"""The student's step: teacher, student, loss, backward and optimiser on a batch of the pool.

What makes new images between two steps is not part of it; see ``benchmarks.inversion_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks import bound
from benchmarks.case import Case
from benchmarks.claims import METHODS
from benchmarks.compensation_cost import Case as Compensated
from benchmarks.compensation_cost import NoSink, build_compensation
from benchmarks.interleaved import Action
from benchmarks.place import SHAPE, SPEC, Place
from benchmarks.reference.dafl import PlainDafl
from benchmarks.reference.distillation import Loss, NoisyLabels, PlainDistillation, soft_labels
from benchmarks.reference.hooks import MeanHook, StatisticsHook, norms_of
from benchmarks.reference.image_files import batches
from benchmarks.reference.mosaick import PlainMosaick
from benchmarks.reference.networks import Generator, PatchDiscriminator
from kdci.models import build_backbone
from kdci.models.generators.generator import Generator as ProjectGenerator
from kdci.training.distillation import Distiller

_NEVER = 10**9
"""Steps until the method would make new images, or an epoch would end."""
_DICTIONARY = Compensated(10, 64)
_TEMPERATURES = {"dafl": 1.0, "fast": 20.0, "cmi": 20.0, "deepinv": 20.0, "mosaick": 1.0}
"""Each method's default; DFND has a loss of its own."""
_ACCURACY = 0.9
_CHOOSING = ("mosaick", "dfnd")


def cases(*, quick: bool) -> list[Case]:
    """Return the step of every method on one pair, and of Fast on another."""
    if quick:
        return [_case(method, "wrn-10-1", "wrn-10-1", 4, 2) for method in METHODS]
    small = [_case(method, "wrn-40-2", "wrn-16-1", 128, 7) for method in METHODS]
    return [*small, _case("fast", "resnet-34", "resnet-18", 128, 5)]


def _case(method: str, teacher: str, student: str, batch: int, repeats: int) -> Case:
    sizes = (method, teacher, student, batch)
    return Case(
        "kd_step",
        method,
        teacher,
        student,
        batch,
        {
            "project": partial(_project, *sizes, compensated=False),
            "compensated": partial(_project, *sizes, compensated=True),
            "plain": partial(_plain, *sizes),
            "bound": partial(_bound, *sizes),
        },
        repeats=repeats,
    )


def _project(
    method: str, teacher: str, student: str, batch: int, place: Place, *, compensated: bool
) -> Action:
    frozen = place.teacher(teacher)
    values = {"num_selected": place.num_images} if method in _CHOOSING else {}
    distiller = Distiller(
        teacher=place.predicting(frozen),
        student=place.student(student),
        source=place.source(method, frozen, **values),
        compensation=build_compensation(_DICTIONARY, place.runtime) if compensated else None,
        sink=NoSink(),
        num_epochs=1,
        steps_per_epoch=_NEVER,
        batch_size=batch,
        learning_rate=0.1,
    )
    distiller.step, distiller.refresh_period = 1, _NEVER
    steps = distiller.run()
    return lambda: next(steps)


def _plain(method: str, teacher: str, student: str, batch: int, place: Place) -> Action:
    hooked = place.plain(teacher, seed=0)
    images = _PLAIN_IMAGES[method](place, hooked, batch)
    device, loss = place.runtime.device, plain_loss(method)
    if isinstance(loss, torch.nn.Module):
        loss.to(device)
    distillation = PlainDistillation(hooked, place.plain(student, seed=1), loss)
    return lambda: distillation.step(next(images).to(device))


def plain_loss(method: str) -> Loss:
    """Return a baseline's student loss."""
    if method == "dfnd":
        return NoisyLabels(SPEC.num_classes, _ACCURACY)
    return soft_labels(_TEMPERATURES[method])


def _files(place: Place, batch: int) -> Iterator[Tensor]:
    return batches(
        place.png_folder(),
        batch_size=batch,
        mean=SPEC.mean,
        std=SPEC.std,
        threads=place.runtime.threads,
    )


def _of_inversion(
    place: Place, teacher: torch.nn.Module, batch: int, *, features: bool = False
) -> Iterator[Tensor]:
    """Yield files; the hooks of synthesis stay on the teacher."""
    for layer in norms_of(teacher):
        StatisticsHook(layer)
        if features:
            MeanHook(layer)
    return _files(place, batch)


def _of_dafl(place: Place, teacher: torch.nn.Module, batch: int) -> Iterator[Tensor]:
    plain = PlainDafl(
        teacher,
        Generator(512).to(place.runtime.device),
        place.normalizer(),
        batch_size=batch,
        random=torch.Generator(),
    )
    while True:
        yield plain.sample(batch)


def _of_mosaick(place: Place, teacher: torch.nn.Module, batch: int) -> Iterator[Tensor]:
    plain = PlainMosaick(
        teacher,
        None,
        Generator(100, large=True).to(place.runtime.device),
        PatchDiscriminator(),
        place.normalizer(),
    )
    for chosen in _files(place, batch - batch // 2):
        yield torch.cat([plain.sample(batch // 2), chosen.to(place.runtime.device)])


_PLAIN_IMAGES: dict[str, Callable[[Place, torch.nn.Module, int], Iterator[Tensor]]] = {
    "dafl": _of_dafl,
    "fast": _of_inversion,
    "cmi": partial(_of_inversion, features=True),
    "deepinv": _of_inversion,
    "mosaick": _of_mosaick,
    "dfnd": lambda place, teacher, batch: _files(place, batch),
}


def _bound(method: str, teacher: str, student: str, batch: int, place: Place) -> Action:
    device = place.runtime.device
    passes = [
        _bare(teacher, batch, device, training=False),
        _bare(student, batch, device, training=True),
    ]
    if method == "mosaick":
        passes.append(_generate(batch // 2, device))
    return lambda: [run() for run in passes]


@cache
def _bare(name: str, batch: int, device: torch.device, *, training: bool) -> Action:
    """Return a network's pass in its fastest setting; found once for all methods."""

    def build(setting: bound.Setting) -> Action:
        network = build_backbone(name, num_classes=SPEC.num_classes, channels=SPEC.channels)
        setting.of(network.to(device))
        images = setting.images(batch, SHAPE, device)
        prepare = bound.training_pass if training else bound.forward_pass
        return prepare(network, images)

    return bound.fastest(build, device)[0]


def _generate(num_images: int, device: torch.device) -> Action:
    """Return MosaicKD's making of its half of a batch."""

    def build(setting: bound.Setting) -> Action:
        generator = ProjectGenerator(latent_dim=100, image_size=32, channels=3, large=True)
        setting.of(generator.to(device))
        latents = torch.randn(num_images, 100, device=device, dtype=setting.dtype)

        @torch.no_grad()
        def run() -> None:
            generator(latents)

        return run

    return bound.fastest(build, device)[0]
