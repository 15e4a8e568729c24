"""The only door to original data: after the teacher, only evaluation may pass it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.cifar_batches import read_batch
from kdci.data.datasets.digits import load_digits
from kdci.data.datasets.image_folders import files_of_classes
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.datasets.places import PLACES, find_split
from kdci.data.datasets.tiny_imagenet import annotated_files, is_annotated
from kdci.data.files.image_files import images_of_files
from kdci.data.files.parquet import check_labelled, read_labelled
from kdci.errors import UserError


def load_split(spec: DatasetSpec, *, path: Path | None, split: Split) -> LabelledImages:
    """Read one split of an original dataset.

    Args:
        spec: The dataset's facts, of the catalog or of a custom dataset.
        path: Folder that holds the files, or, of the catalog's, one further down; ``None`` where
            they are bundled.
        split: ``train`` or ``test``; where the public test images have no labels, as ImageNet's,
            the latter is the validation split.

    Returns:
        Images of the size and channels, and labels of the range, that the spec states. Photographs
        are cut square and resized, and maybe decoded when they are asked for. Labels are those of
        Parquet, CIFAR's own (of CIFAR-100 the fine ones), or the places of the class folders.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is damaged or not plain data.
    """
    data = load_digits(spec, path, split) if spec.bundled else _read(spec, path, split)
    _require_spec(data, spec, str(path or spec.name))
    return data


def _read(spec: DatasetSpec, path: Path | None, split: Split) -> LabelledImages:
    found, places = find_split(spec, path, split), PLACES[spec.name]
    if isinstance(found, Path):
        files, labels = _listed(found, spec)
        return LabelledImages(images_of_files(files, spec), torch.tensor(labels))
    if places.batches is None or found[0].suffix == ".parquet":
        return read_labelled(found, spec)
    batches = [read_batch(file, labels=places.batches.labels) for file in found]
    return LabelledImages(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _listed(
    folder: Path, spec: DatasetSpec, *, firsts: bool = False
) -> tuple[list[str], list[int]]:
    """Return image files with their labels; for ``firsts`` see ``files_of_classes``."""
    tree = PLACES[spec.name].tree
    if is_annotated(folder, spec):
        return annotated_files(folder, spec, tree)
    return files_of_classes(folder, spec, tree, firsts=firsts)


def check_dataset(spec: DatasetSpec, path: Path | None, splits: Sequence[Split]) -> None:
    """Check in well under a second that splits can be read, without decoding them.

    Of Parquet files columns and the first image are looked at, of folders whether every class has
    an image, and the first one.

    Raises:
        UserError: If the files are missing or are not this dataset.
        IntegrityError: If a file is visibly damaged.
    """
    if spec.bundled:
        load_digits(spec, path, "train")
        return
    for split in splits:
        found = find_split(spec, path, split)
        if isinstance(found, Path):
            files, _ = _listed(found, spec, firsts=True)
            images_of_files(files[:1], spec)
            continue
        for file in found:
            if file.suffix == ".parquet":
                check_labelled(file, spec)


def _require_spec(data: LabelledImages, spec: DatasetSpec, subject: str) -> None:
    if len(data) == 0:
        raise UserError(subject, "no images", "every split needs at least one")
    wrong = ((data.labels < 0) | (data.labels >= spec.num_classes)).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            subject,
            f"image {row} has label {int(data.labels[row])}",
            f"{spec.name} has labels 0 to {spec.num_classes - 1}",
        )
