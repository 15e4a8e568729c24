"""A pool as the baselines keep it: a PNG file an image, read anew at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from kdci.training.runtime import available_cores

WORKERS = 4
"""Processes that the public implementations read images with."""


class ImageFolder(Dataset[Tensor]):
    """The PNG files below a folder, each through a transform."""

    def __init__(self, folder: Path, transform: Callable[[Image.Image], Tensor]) -> None:
        self.files = sorted(folder.rglob("*.png"))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]))


def write_images(images: Tensor, folder: Path) -> None:
    """Write uint8 images (M, 3, H, W) as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{index:06d}.png")


def num_workers(threads: int) -> int:
    """Return how many processes read images: ``WORKERS``, at most the cores torch leaves.

    None, where torch computes on all of them: reading then takes its time within the step, as
    much as workers would take of the step's cores.
    """
    return max(0, min(WORKERS, available_cores() - threads))


def batches(
    folder: Path,
    *,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    threads: int,
    augment: bool = True,
) -> Iterator[Tensor]:
    """Yield normalised batches of a folder in shuffled order, epoch after epoch, (B, 3, H, W)."""
    size = 32
    crop = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()]
    convert = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    dataset = ImageFolder(folder, transforms.Compose([*(crop if augment else []), *convert]))
    workers = num_workers(threads)
    loader = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True
    )
    while True:
        yield from loader
