"""Every baseline computes the loss that the project computes on the same input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.compensation_cost import FixedBatch
from benchmarks.kd_step import plain_loss
from benchmarks.place import SPEC, Place
from benchmarks.reference.augmentation import crop_and_flip, resized_crop_and_flip
from benchmarks.reference.cmi import PlainCmi
from benchmarks.reference.dafl import PlainDafl
from benchmarks.reference.deepinv import PlainDeepInv
from benchmarks.reference.dictionary import plain_dictionary
from benchmarks.reference.distillation import PlainDistillation
from benchmarks.reference.fast import PlainFast
from benchmarks.reference.image_files import WORKERS, batches, num_workers
from benchmarks.reference.mosaick import PlainMosaick
from benchmarks.reference.networks import (
    Generator,
    PatchDiscriminator,
    ProjectionHead,
    classifier,
)
from kdci.config.catalog import DATASETS
from kdci.data.bank.augmentation import augment
from kdci.data.bank.resized_crop import random_resized_crop
from kdci.deconfounding.confounder import build_dictionary
from kdci.methods.cmi import CmiSource
from kdci.models.pretrained import build_network
from kdci.substitution.bank_source import BankSource
from kdci.substitution.registry import method_names
from kdci.training.distillation import Distiller
from kdci.training.runtime import Runtime, available_cores

TEACHER = STUDENT = "wrn-10-1"
BATCH = 6
CHOOSING = {name: {"num_selected": 16} for name in ("mosaick", "dfnd")}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Place(Runtime(torch.device("cpu"), 1, "fp32"), tmp_path, num_images=16)
    torch.set_num_threads(threads)


def copied(plain: nn.Module, project: nn.Module) -> Any:
    """Give a baseline's net the weights of the project's, which come in the same order."""
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), project.parameters(), strict=True):
            mine.copy_(theirs)
    return plain


def same_stream(source: BankSource) -> torch.Generator:
    """Return a stream that draws what a method will draw next."""
    return torch.Generator().set_state(cast(Any, source).random.get_state())


def moved(network: nn.Module) -> None:
    """Give BatchNorms running statistics that are not those of a fresh network."""
    random = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=random))
            module.running_var.copy_(1 + torch.rand(module.num_features, generator=random))


class Losses:
    """A sink that keeps the losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, **values: float) -> None:
        self.values.append(values["loss"])


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet-18"])
def test_the_networks_are_the_projects(name: str) -> None:
    project = build_network(name, SPEC, seed=2)
    plain = classifier(name)
    plain.load_state_dict(project.backbone.state_dict())
    moved(project.eval())
    moved(plain.eval())
    images = torch.rand(3, 3, 32, 32)
    expected = project(images)
    logits, features = plain((images - project.mean) / project.std)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features, expected.features, rtol=1e-3, atol=1e-4)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="resnet-99"):
        classifier("resnet-99")


@pytest.mark.parametrize("method", method_names())
def test_the_students_loss(method: str, place: Place) -> None:
    """Over three steps, so that the optimisers' steps are the same, too."""
    images = torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    teacher, sink = place.teacher(TEACHER), Losses()
    source = place.source(method, teacher, **CHOOSING.get(method, {}))
    fixed = FixedBatch(images)
    fixed.criterion = source.criterion  # type: ignore[method-assign]
    distiller = Distiller(
        teacher=teacher,
        student=place.student(STUDENT),
        source=cast(BankSource, fixed),
        compensation=None,
        sink=sink,
        num_epochs=3,
        steps_per_epoch=1,
        batch_size=BATCH,
        learning_rate=0.1,
        schedule="constant",
    )
    list(distiller.run())
    networks = (place.plain(name, seed=seed) for seed, name in enumerate((TEACHER, STUDENT)))
    plain = PlainDistillation(*networks, plain_loss(method))
    normalised = place.normalizer()(images)
    assert [plain.step(normalised) for _ in range(3)] == pytest.approx(sink.values, rel=2e-3)


def test_dafls_generator_loss(place: Place) -> None:
    values = {"num_steps": 9, "skip_steps": 8, "sample_every": 1}
    source = place.source("dafl", place.teacher(TEACHER), batch_size=BATCH, **values)
    plain = PlainDafl(
        place.plain(TEACHER, seed=0),
        copied(Generator(512), cast(Any, source).generator),
        place.normalizer(),
        batch_size=BATCH,
        random=same_stream(source),
    )
    parts = source.prepare()
    for _ in range(2):
        assert plain.step() == pytest.approx(next(parts)["generator_loss"], rel=1e-3)


def test_fasts_inversion_loss(place: Place) -> None:
    """Of two calls: the second one has an adversary and remembered statistics."""
    values = {"batch_size": BATCH, "num_steps": 2, "warmup_calls": 0}
    source, student = place.source("fast", place.teacher(TEACHER), **values), place.student(STUDENT)
    plain = PlainFast(
        place.plain(TEACHER, seed=0),
        None,
        copied(Generator(256), cast(Any, source).meta.generator),
        place.normalizer(),
        batch_size=BATCH,
        num_steps=2,
        random=same_stream(source),
    )
    assert plain.call() == pytest.approx(source.refresh(student)["inversion_loss"], rel=1e-3)
    plain.student = place.plain(STUDENT, seed=1)
    assert plain.call() == pytest.approx(source.refresh(student)["inversion_loss"], rel=1e-2)


def test_cmis_inversion_loss(place: Place) -> None:
    values = {"batch_size": BATCH, "num_steps": 1, "num_negatives": 5}
    source = cast(CmiSource, place.source("cmi", place.teacher(TEACHER), **values))
    num_features = source.discrimination.memory.rows.shape[2]
    memory = torch.rand(5, 2, num_features)
    source.discrimination.memory.add(memory)
    plain = PlainCmi(
        place.plain(TEACHER, seed=0),
        place.plain(STUDENT, seed=1),
        Generator(256),
        copied(ProjectionHead(num_features, 256), source.discrimination.head),
        place.normalizer(),
        batch_size=BATCH,
        num_steps=1,
        memory=memory.flatten(1),
        num_negatives=5,
        random=same_stream(source),
    )
    expected = source.refresh(place.student(STUDENT))["inversion_loss"]
    assert plain.call() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("num_steps", "tolerance"), [(1, 1e-4), (3, 2e-2)])
def test_deepinvs_inversion_loss(num_steps: int, tolerance: float, place: Place) -> None:
    """Adam's first steps on pixels are signs, so those of gradients near 0 may differ."""
    values = {"batch_size": BATCH, "num_steps": num_steps}
    source = place.source("deepinv", place.teacher(TEACHER), **values)
    plain = PlainDeepInv(
        place.plain(TEACHER, seed=0),
        place.plain(STUDENT, seed=1),
        place.normalizer(),
        batch_size=BATCH,
        num_steps=num_steps,
        random=same_stream(source),
    )
    expected = source.refresh(place.student(STUDENT))["inversion_loss"]
    assert plain.call() == pytest.approx(expected, rel=tolerance)


def test_mosaicks_losses_of_both_players(place: Place) -> None:
    source: Any = place.source("mosaick", place.teacher(TEACHER), num_selected=16)
    student = place.student(STUDENT)
    plain = PlainMosaick(
        place.plain(TEACHER, seed=0),
        place.plain(STUDENT, seed=1),
        copied(Generator(100, large=True), source.game.generator),
        copied(PatchDiscriminator(), source.game.discriminator),
        place.normalizer(),
    )
    random = torch.Generator().manual_seed(3)
    # Adam's first step is the rate times the gradient's sign, of nearly nothing too: from the
    # second on rounding shows.
    for tolerance in (1e-3, 3e-2):
        latents = torch.randn(BATCH, 100, generator=random)
        real = torch.rand(BATCH, 3, 32, 32, generator=random)
        expected = source.game.step(latents, real, student)
        found = plain.step(latents, place.normalizer()(real))
        wanted = (expected["discriminator"], expected["generator_loss"])
        assert found == pytest.approx(wanted, rel=tolerance)


def test_the_dictionary(place: Place) -> None:
    network = place.plain(TEACHER, seed=0).eval()
    images = torch.randn(64, 3, 32, 32)
    means, proportions = plain_dictionary(network, images.split(20), 4, seed=3)
    with torch.no_grad():
        ours = build_dictionary(network(images)[0], num_prototypes=4, seed=3)
    order = np.argsort(-proportions, kind="stable")
    np.testing.assert_allclose(proportions[order], ours.proportions_N.numpy(), rtol=1e-6)
    assert sorted(means[:, 0].tolist()) == pytest.approx(
        sorted(ours.prototypes_ND[:, 0].tolist()), rel=1e-3
    )


def test_views_of_images_are_the_projects() -> None:
    images = torch.rand(5, 3, 32, 32)
    one, same = (torch.Generator().manual_seed(4) for _ in range(2))
    expected = augment(images, DATASETS["cifar10"], same)
    assert torch.equal(crop_and_flip(images, 4, one), expected)
    expected = random_resized_crop(images, scale=(0.25, 1.0), flip=True, generator=same)
    found = resized_crop_and_flip(images, (0.25, 1.0), one)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_files_give_back_the_pool(place: Place) -> None:
    stored = batches(
        place.png_folder(), batch_size=16, mean=SPEC.mean, std=SPEC.std, threads=99, augment=False
    )
    shown = next(stored) * torch.tensor(SPEC.std)[:, None, None]
    shown += torch.tensor(SPEC.mean)[:, None, None]

    def in_order(images: Tensor) -> list[list[int]]:
        return sorted(images.flatten(1).round().int().tolist())

    assert in_order(255 * shown) == in_order(place.images())


def test_readers_take_the_cores_that_torch_leaves() -> None:
    assert num_workers(available_cores()) == 0
    assert num_workers(available_cores() - 3) == 3
    assert num_workers(available_cores() - 9) == WORKERS
