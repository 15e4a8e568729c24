"""What the teacher is shown of images that are being synthesised, by the dataset's augmentation."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kdci.config.catalog import DATASETS
from kdci.data.bank.image_bank import ImageBank
from kdci.data.bank.resized_crop import draw_resized_crop
from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext


def source(folder: Path, dataset: str, seed: int = 3) -> BankSource:
    spec = replace(DATASETS[dataset], image_size=16)

    def no_open_world() -> Tensor:
        raise AssertionError

    return BankSource(
        SourceContext(
            teacher=PixelModel(nn.Identity(), mean=spec.mean, std=spec.std),
            spec=spec,
            bank=ImageBank(folder.with_suffix(".bank"), shape=(3, 16, 16)),
            seed=seed,
            teacher_accuracy=0.9,
            open_world=no_open_world,
        )
    )


def test_batches_are_what_they_have_always_been(tmp_path: Path) -> None:
    """Rows, crops and flips of a seed: a student that goes on from a checkpoint meets the same."""
    made = source(tmp_path / "a", "cifar10")
    # A module without weights has no device to tell.
    made.context.teacher.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    pixels = torch.arange(50 * 768).remainder(256).view(50, 3, 16, 16)
    made.bank.append(pixels.float() / 255)
    digest = hashlib.sha256()
    for size in (32, 7, 64):
        digest.update(made.batch(size).numpy().tobytes())
    assert digest.hexdigest() == "5ad1514bd3757be59dc28dfcd351a1b121a6a1f39247f4c550e3d7358d155b32"


def test_a_view_is_the_students_augmentation_where_images_are_cropped(tmp_path: Path) -> None:
    images = torch.rand(6, 3, 16, 16)
    one, other = source(tmp_path / "a", "cifar10"), source(tmp_path / "b", "cifar10")
    assert torch.equal(one.view(images), other.augment(images))


def test_a_view_is_nearly_whole_where_students_see_small_boxes(tmp_path: Path) -> None:
    """Of a ramp from 0 to 1, what is seen spans as much as the box is wide."""
    ramp = torch.linspace(0, 1, 16).expand(400, 3, 16, 16)
    viewed = source(tmp_path / "a", "imagenet").view(ramp)[:, 0, 0]
    augmented = source(tmp_path / "b", "imagenet").augment(ramp)[:, 0, 0]

    def spans(rows: Tensor) -> Tensor:
        return rows.amax(dim=1) - rows.amin(dim=1)

    drawn = draw_resized_crop(
        400,
        height=16,
        width=16,
        scale=(0.75, 1.0),
        flip=True,
        generator=torch.Generator().manual_seed(3),
    )
    # The outermost pixels' centres lie half a pixel within the box.
    torch.testing.assert_close(spans(viewed), (drawn.widths - 1) / 15, atol=0.06, rtol=0)
    assert spans(viewed).min() > 0.6 > spans(augmented).quantile(0.25)
