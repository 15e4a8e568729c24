from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kdci.config.catalog import DATASETS
from kdci.data.files.image_files import ImageFiles
from kdci.training.evaluation import (
    class_proportions,
    image_batches,
    match_percentage,
    predict_classes,
    predict_logits,
)


def make_images(num_images: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 1, 3, 3), generator=generator, dtype=torch.uint8)


def test_batches_are_the_images_in_order_on_the_unit_scale() -> None:
    images = make_images(7)
    batches = list(image_batches(images, batch_size=3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    whole = torch.cat(batches)
    assert whole.dtype == torch.float32 and float(whole.max()) <= 1
    assert torch.equal((whole * 255).round().to(torch.uint8), images)
    assert float(next(iter(image_batches(torch.full_like(images, 255), batch_size=7))).min()) == 1


def test_images_in_files_are_scored_as_those_in_memory(tmp_path: Path) -> None:
    pixels = make_images(7).repeat(1, 3, 1, 1)
    files = [str(tmp_path / f"{number}.png") for number in range(7)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    lazy = ImageFiles(files, replace(DATASETS["cifar10"], image_size=3))
    batches = [*image_batches(lazy, batch_size=3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    weights = torch.randn(27, 4, generator=torch.Generator().manual_seed(1))
    scored = [
        predict_logits(lambda x: x.flatten(1) @ weights, images, batch_size=3)
        for images in (lazy, pixels)
    ]
    assert torch.equal(*scored)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_predicted_classes_equal_a_loop_over_images(batch_size: int) -> None:
    images = make_images(9)
    weights = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    got = predict_classes(lambda x: x.flatten(1) @ weights, images, batch_size=batch_size)
    expected = [int(((image.float() / 255).flatten() @ weights).argmax()) for image in images]
    assert got.tolist() == expected and got.dtype == torch.int64


def test_no_graph_is_kept() -> None:
    weights = torch.ones(9, 2, requires_grad=True)
    seen: list[bool] = []

    def logits_of(images: Tensor) -> Tensor:
        logits = images.flatten(1) @ weights
        seen.append(logits.requires_grad)
        return logits

    predict_classes(logits_of, make_images(2), batch_size=2)
    assert seen == [False]


def test_match_percentage_by_hand() -> None:
    expected = torch.tensor([0, 1, 2, 2])
    assert match_percentage(torch.tensor([0, 1, 2, 1]), expected) == 75.0
    assert match_percentage(expected, expected) == 100.0
    # 1 of 3 in single precision is off by 1e-6.
    third = match_percentage(torch.tensor([0, 0, 0]), torch.tensor([0, 1, 1]))
    assert third == pytest.approx(100 / 3, abs=1e-12)


def test_class_proportions_count_absent_classes() -> None:
    shares = class_proportions(torch.tensor([2, 0, 2, 2]), num_classes=4)
    assert shares.tolist() == [0.25, 0.0, 0.75, 0.0]
