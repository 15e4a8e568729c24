"""The only door to original data: after the teacher, only evaluation may pass it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdci.config.catalog import CUSTOM, DatasetSpec
from kdci.data.datasets.cifar import check_cifar, load_cifar
from kdci.data.datasets.digits import check_digits, load_digits5_split, load_digits_split
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.datasets.photo_datasets import check_photos, load_photos
from kdci.data.datasets.tiny_imagenet import check_tiny_imagenet, load_tiny_imagenet
from kdci.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How one dataset is read.

    Attributes:
        load: Reads one split from a path.
        check: Raises ``UserError`` where ``load`` would, as far as a quick look can tell.
    """

    load: Callable[[DatasetSpec, Path | None, Split], LabelledImages]
    check: Callable[[DatasetSpec, Path | None, Sequence[Split]], None]


LOADERS: dict[str, Loader] = {
    "digits": Loader(load_digits_split, check_digits),
    "digits5": Loader(load_digits5_split, check_digits),
    "cifar10": Loader(load_cifar, check_cifar),
    "cifar100": Loader(load_cifar, check_cifar),
    "tiny-imagenet": Loader(load_tiny_imagenet, check_tiny_imagenet),
    "imagenet": Loader(load_photos, check_photos),
    CUSTOM: Loader(load_photos, check_photos),
}


def load_split(spec: DatasetSpec, *, path: Path | None, split: Split) -> LabelledImages:
    """Read one split of an original dataset.

    Args:
        spec: The dataset's facts, of the catalog or of a custom dataset.
        path: Folder that holds the files; ``None`` where they are bundled.
        split: ``train`` or ``test``; where the public test images have no labels, as ImageNet's,
            the latter is the validation split.

    Returns:
        Images of the size and channels, and labels of the range, that the spec states.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is damaged or not plain data.
        ValueError: If no dataset of the spec's name can be read.
    """
    data = _loader(spec).load(spec, path, split)
    _require_spec(data, spec, str(path or spec.name))
    return data


def check_dataset(spec: DatasetSpec, path: Path | None, splits: Sequence[Split]) -> None:
    """Check in well under a second that splits can be read, without decoding them.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is visibly damaged.
        ValueError: If no dataset of the spec's name can be read.
    """
    _loader(spec).check(spec, path, splits)


def _loader(spec: DatasetSpec) -> Loader:
    if spec.name not in LOADERS:
        raise ValueError(f"unknown dataset {spec.name!r}, known are {', '.join(LOADERS)}")
    return LOADERS[spec.name]


def _require_spec(data: LabelledImages, spec: DatasetSpec, subject: str) -> None:
    if len(data) == 0:
        raise UserError(subject, "no images", "every split needs at least one")
    shape = spec.image_shape
    if tuple(data.images.shape[1:]) != shape:
        got = tuple(data.images.shape[1:])
        raise UserError(subject, f"images are {got}", f"{spec.name} has {shape}")
    wrong = ((data.labels < 0) | (data.labels >= spec.num_classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            subject,
            f"image {row} has label {int(data.labels[row])}",
            f"{spec.name} has labels 0 to {spec.num_classes - 1}",
        )
