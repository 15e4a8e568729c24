from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kdci.synthesis.image_priors import jitter, mean_norm, total_variation

CORNERS = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
total_variation_l1 = partial(total_variation, l1_weight=1.0, l2_weight=0.0)
total_variation_l2 = partial(total_variation, l1_weight=0.0, l2_weight=1.0)
DIRECTIONS = [(0, 1), (1, 0), (1, 1), (1, -1)]


def random_images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def naive_differences(images: Tensor, down: int, right: int) -> list[float]:
    """Return differences of all pairs of pixels of an image that lie one step apart."""
    found = []
    batch, channels, height, width = images.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if i + down < height and 0 <= j + right < width:
                        found.append(float(images[b, c, i + down, j + right] - images[b, c, i, j]))
    return found


class TestTotalVariation:
    def test_naive_loops(self) -> None:
        images = random_images(2, 3, 4, 5)
        per_direction = [naive_differences(images, *direction) for direction in DIRECTIONS]
        l1 = sum(sum(map(abs, found)) / len(found) for found in per_direction)
        l2 = sum(math.sqrt(sum(value**2 for value in found)) for found in per_direction)
        assert float(total_variation_l1(images)) == pytest.approx(l1, rel=1e-5)
        assert float(total_variation_l2(images)) == pytest.approx(l2, rel=1e-5)

    def test_hand_computed(self) -> None:
        # Right: 1 and 2. Down: 2 and 3. Diagonals: 4, and 1 between the other two corners.
        assert float(total_variation_l1(CORNERS)) == pytest.approx(1.5 + 2.5 + 4 + 1)
        expected = math.sqrt(5) + math.sqrt(13) + 4 + 1
        assert float(total_variation_l2(CORNERS)) == pytest.approx(expected)

    def test_of_two_equal_images(self) -> None:
        # A mean stays, a norm over the batch grows by the square root of 2.
        twice = CORNERS.repeat(2, 1, 1, 1)
        assert float(total_variation_l1(twice)) == pytest.approx(9.0)
        expected = math.sqrt(2) * (math.sqrt(5) + math.sqrt(13) + 5)
        assert float(total_variation_l2(twice)) == pytest.approx(expected)

    def test_weighted_sum(self) -> None:
        l1, l2 = float(total_variation_l1(CORNERS)), float(total_variation_l2(CORNERS))
        for first, second in [(0.5, 2.0), (0.5, 0.0), (0.0, 2.0), (0.0, 0.0)]:
            total = total_variation(CORNERS, l1_weight=first, l2_weight=second)
            assert float(total) == pytest.approx(first * l1 + second * l2)

    def test_a_flat_image_gets_no_gradient_that_is_not_finite(self) -> None:
        flat = torch.zeros(1, 1, 3, 3, requires_grad=True)
        total_variation(flat, l1_weight=1.0, l2_weight=1.0).backward()
        assert flat.grad is not None and not bool(flat.grad.any())

    def test_gradient(self) -> None:
        images = CORNERS.clone().requires_grad_()
        total_variation_l1(images).backward()
        # The bottom right corner: half of the two means, and all of a diagonal.
        assert images.grad is not None
        assert images.grad.flatten().tolist() == [-2.0, -1.0, 1.0, 2.0]


class TestMeanNorm:
    def test_naive_loop(self) -> None:
        images = random_images(3, 2, 4, 5)
        norms = [math.sqrt(sum(v**2 for v in image.flatten().tolist())) for image in images]
        assert float(mean_norm(images)) == pytest.approx(sum(norms) / 3, rel=1e-6)

    def test_hand_computed(self) -> None:
        images = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]], requires_grad=True)
        norm = mean_norm(images)
        norm.backward()
        assert float(norm.detach()) == 2.5
        assert images.grad is not None
        assert images.grad.flatten().tolist() == pytest.approx([0.3, 0.4, 0.0, 0.0])


class TestJitter:
    def test_is_torch_roll_of_the_whole_batch(self) -> None:
        images = random_images(3, 2, 16, 8)
        seen = set()
        for seed in range(60):
            moved = jitter(
                images, fraction=0.125, flip=False, generator=torch.Generator().manual_seed(seed)
            )
            shifts = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-1, 2)
                if torch.equal(moved, images.roll((down, right), (2, 3)))
            ]
            assert len(shifts) == 1
            seen.add(shifts[0])
        # An eighth of 16 rows and of 8 columns, both ways; every shift comes up.
        assert seen == {(down, right) for down in range(-2, 3) for right in range(-1, 2)}

    def test_wraps_around(self) -> None:
        row = torch.arange(4.0).view(1, 1, 1, 4)
        generator = torch.Generator().manual_seed(0)
        seen = {
            tuple(jitter(row, fraction=0.25, flip=False, generator=generator).flatten().tolist())
            for _ in range(30)
        }
        assert seen == {(0.0, 1.0, 2.0, 3.0), (3.0, 0.0, 1.0, 2.0), (1.0, 2.0, 3.0, 0.0)}

    def test_mirrors_half_of_the_batches_as_a_whole(self) -> None:
        images, generator = random_images(3, 1, 4, 4), torch.Generator().manual_seed(0)
        mirrored = 0
        for _ in range(200):
            moved = jitter(images, fraction=0.0, flip=True, generator=generator)
            is_mirrored = torch.equal(moved, images.flip(3))
            assert is_mirrored or torch.equal(moved, images)
            mirrored += is_mirrored
        assert 70 < mirrored < 130

    def test_gradient_goes_back_to_where_a_pixel_came_from(self) -> None:
        images = random_images(2, 1, 8, 8).requires_grad_()
        moved = jitter(images, fraction=0.25, flip=True, generator=torch.Generator().manual_seed(1))
        assert not torch.equal(moved, images)
        (moved**2).sum().backward()
        assert images.grad is not None
        torch.testing.assert_close(images.grad, 2 * images.detach())
