"""Building the confounder dictionary of a pool: the teacher's predictions, then k-means."""

from __future__ import annotations

from functools import partial

from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import bound
from benchmarks.case import Case
from benchmarks.interleaved import Action
from benchmarks.place import SHAPE, SPEC, Place
from benchmarks.reference.dictionary import plain_dictionary
from benchmarks.reference.image_files import ImageFolder, num_workers
from kdci.data.bank.mapped_images import MappedImages
from kdci.deconfounding.confounder import PoolPredictions, build_dictionary_by_batches
from kdci.models import build_backbone
from kdci.training.evaluation import PREDICTION_BATCH, image_batches

_PROTOTYPES = 10
_PLAIN_BATCH = 256


def cases(*, quick: bool) -> list[Case]:
    """Return the one case: no method makes another dictionary of the same pool."""
    teacher, num_images, repeats = ("wrn-10-1", 64, 2) if quick else ("wrn-40-2", 1024, 5)
    ways = {
        "project": partial(_project, teacher),
        "plain": partial(_plain, teacher),
        "bound": partial(_bound, teacher),
    }
    note = f"{_PROTOTYPES} prototypes of {num_images} images"
    case = Case(
        "dictionary_building",
        None,
        teacher,
        None,
        num_images,
        ways,
        repeats=repeats,
        num_images=num_images,
        note=note,
    )
    return [case]


def _project(teacher: str, place: Place) -> Action:
    network = place.teacher(teacher)
    images = MappedImages(place.npy_file())
    batches = partial(
        image_batches, images, batch_size=PREDICTION_BATCH, device=place.runtime.device
    )

    def run() -> None:
        predictions = PoolPredictions(network, batches, num_rows=len(images), space="logits")
        build_dictionary_by_batches(
            predictions, num_rows=len(images), num_prototypes=_PROTOTYPES, seed=0
        )

    return run


def _plain(teacher: str, place: Place) -> Action:
    network = place.plain(teacher, seed=0).eval()
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)]
    )
    loader = DataLoader(
        ImageFolder(place.png_folder(), transform),
        batch_size=_PLAIN_BATCH,
        num_workers=num_workers(place.runtime.threads),
    )
    return lambda: plain_dictionary(network, loader, _PROTOTYPES, seed=0)


def _bound(teacher: str, place: Place) -> Action:
    device = place.runtime.device
    sizes = [
        min(PREDICTION_BATCH, place.num_images - first)
        for first in range(0, place.num_images, PREDICTION_BATCH)
    ]

    def build(setting: bound.Setting) -> Action:
        network = build_backbone(teacher, num_classes=SPEC.num_classes, channels=SPEC.channels)
        setting.of(network.to(device))
        passes = [
            bound.forward_pass(network, setting.images(size, SHAPE, device)) for size in sizes
        ]
        return lambda: [run() for run in passes]

    return bound.fastest(build, device)[0]
