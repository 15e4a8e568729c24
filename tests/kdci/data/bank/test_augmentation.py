from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kdci.config.catalog import DATASETS
from kdci.data.bank.augmentation import (
    CropFlip,
    apply_crop_flip,
    augment,
    draw_crop_flip,
)
from kdci.data.bank.resized_crop import random_resized_crop


def naive(images: Tensor, drawn: CropFlip, padding: int) -> Tensor:
    out = torch.zeros_like(images)
    _, channels, height, width = images.shape
    for b, image in enumerate(images):
        padded = torch.zeros(
            channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype
        )
        padded[:, padding : padding + height, padding : padding + width] = image
        top, left = int(drawn.tops[b]), int(drawn.lefts[b])
        crop = padded[:, top : top + height, left : left + width]
        out[b] = crop.flip(-1) if drawn.flips[b] else crop
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (1, False), (0, True), (3, True)])
def test_equals_a_loop_over_images(dtype: torch.dtype, padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (32, 3, 6, 9), generator=torch.Generator().manual_seed(0))
    images = images.to(dtype)
    drawn = draw_crop_flip(
        32, crop_padding=padding, flip=flip, generator=torch.Generator().manual_seed(1)
    )
    spec = replace(DATASETS["cifar10"], crop_padding=padding, flip=flip)
    got = augment(images, spec, torch.Generator().manual_seed(1))
    assert got.dtype == dtype
    assert torch.equal(got, naive(images, drawn, padding))


def test_draws_cover_their_ranges_evenly() -> None:
    drawn = draw_crop_flip(
        9000, crop_padding=4, flip=True, generator=torch.Generator().manual_seed(0)
    )
    for shifts in (drawn.tops, drawn.lefts):
        counts = shifts.bincount()
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 150
    assert abs(int(drawn.flips.sum()) - 4500) < 200
    assert not torch.equal(drawn.tops, drawn.lefts)


def test_no_flip_and_no_padding_is_the_identity() -> None:
    images = torch.rand(4, 1, 5, 5)
    generator = torch.Generator().manual_seed(0)
    spec = replace(DATASETS["digits"], crop_padding=0)
    assert augment(images, spec, generator) is images
    shifted = draw_crop_flip(100, crop_padding=2, flip=False, generator=generator)
    assert not shifted.flips.any()


def test_gradient_reaches_each_pixel_that_is_still_in_the_crop() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_crop_flip(3, crop_padding=2, flip=True, generator=generator)
    images = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_crop_flip(x, drawn, crop_padding=2), images)
    weights = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        (apply_crop_flip(images, drawn, crop_padding=2) * weights).sum(), images
    )
    other = images.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad((naive(other, drawn, 2) * weights).sum(), other)
    assert torch.equal(gradient, expected)


def test_channels_last_input() -> None:
    images = torch.rand(8, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    drawn = draw_crop_flip(8, crop_padding=1, flip=True, generator=torch.Generator().manual_seed(0))
    got = apply_crop_flip(images, drawn, crop_padding=1)
    assert torch.equal(got, naive(images, drawn, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_result_on_the_gpu() -> None:
    images = torch.rand(16, 3, 8, 8)
    drawn = draw_crop_flip(
        16, crop_padding=2, flip=True, generator=torch.Generator().manual_seed(0)
    )
    got = apply_crop_flip(images.cuda(), drawn, crop_padding=2)
    assert torch.equal(got.cpu(), apply_crop_flip(images, drawn, crop_padding=2))


def test_resized_crops_where_a_dataset_has_them_on_the_scale_of_the_images() -> None:
    spec, images = DATASETS["imagenet"], torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    got = augment(images, spec, torch.Generator().manual_seed(3))
    expected = random_resized_crop(
        images.float(), scale=(0.08, 1.0), flip=True, generator=torch.Generator().manual_seed(3)
    )
    assert torch.equal(got, expected) and float(got.max()) > 1
    floats = (images.float() / 255).requires_grad_()
    seen = augment(floats, spec, torch.Generator().manual_seed(3))
    assert torch.allclose(seen, got / 255)
    (gradient,) = torch.autograd.grad(seen.sum(), floats)
    assert float(gradient.sum()) == pytest.approx(5 * 3 * 144)
