"""The only door to original data: after the teacher, only evaluation may pass it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdci.catalog import DATASETS, DatasetSpec
from kdci.data.cifar10 import check_cifar10, load_cifar10
from kdci.data.digits import check_digits, load_digits5_split, load_digits_split
from kdci.data.labelled import LabelledImages, Split
from kdci.errors import UserError


@dataclass(frozen=True)
class Loader:
    """How one dataset is read.

    Attributes:
        load: Reads one split from a path.
        check: Raises ``UserError`` where ``load`` would, as far as a quick look can tell.
    """

    load: Callable[[Path | None, Split], LabelledImages]
    check: Callable[[Path | None, Sequence[Split]], None]


LOADERS: dict[str, Loader] = {
    "digits": Loader(load_digits_split, check_digits),
    "digits5": Loader(load_digits5_split, check_digits),
    "cifar10": Loader(load_cifar10, check_cifar10),
}


def load_split(name: str, *, path: Path | None, split: Split) -> LabelledImages:
    """Read one split of an original dataset.

    Args:
        name: Key of ``LOADERS``.
        path: Folder that holds the files; ``None`` where they are bundled.
        split: ``train`` or ``test``.

    Returns:
        Images of the size and channels, and labels of the range, that the catalog states.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is damaged or not plain data.
        ValueError: If the name is unknown.
    """
    data = _loader(name).load(path, split)
    _require_spec(data, DATASETS[name], str(path or name))
    return data


def check_dataset(name: str, path: Path | None, splits: Sequence[Split]) -> None:
    """Check in well under a second that splits can be read, without decoding them.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is visibly damaged.
        ValueError: If the name is unknown.
    """
    _loader(name).check(path, splits)


def _loader(name: str) -> Loader:
    if name not in LOADERS:
        raise ValueError(f"unknown dataset {name!r}, known are {', '.join(LOADERS)}")
    return LOADERS[name]


def _require_spec(data: LabelledImages, spec: DatasetSpec, subject: str) -> None:
    if len(data) == 0:
        raise UserError(subject, "no images", "every split needs at least one")
    shape = (spec.channels, spec.image_size, spec.image_size)
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
