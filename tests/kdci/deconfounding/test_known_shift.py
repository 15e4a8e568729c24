from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.deconfounding.known_shift import degrade_chunks, long_tail_counts, resample_rows

SEED = 4


class TestLongTailCounts:
    def test_by_hand(self) -> None:
        """Shares 1 : 1/10 : 1/100 of 111, and 4 : 2 : 1 of 8: 4.57, 2.29 and 1.14."""
        assert long_tail_counts(111, 3, 100).tolist() == [100, 10, 1]
        assert long_tail_counts(8, 3, 4).tolist() == [5, 2, 1]

    @pytest.mark.parametrize("imbalance", [1, 1.5, 10, 100])
    @pytest.mark.parametrize("num_classes", [1, 2, 10])
    def test_fall_geometrically_by_the_ratio_in_all(
        self, num_classes: int, imbalance: float
    ) -> None:
        num_images = 100_003
        counts = long_tail_counts(num_images, num_classes, imbalance)
        assert counts.dtype == torch.int64 and int(counts.sum()) == num_images
        assert all(low <= high for high, low in pairwise(counts.tolist()))
        weights = [imbalance ** (-k / max(num_classes - 1, 1)) for k in range(num_classes)]
        for count, weight in zip(counts.tolist(), weights, strict=True):
            assert abs(count - num_images * weight / sum(weights)) < 1
        if num_classes > 1:
            assert int(counts[0]) / int(counts[-1]) == pytest.approx(imbalance, rel=0.01)

    def test_what_rounding_leaves_goes_to_the_largest_remainders(self) -> None:
        for num_images in range(30, 60):
            counts = long_tail_counts(num_images, 5, 7).tolist()
            weights = [7 ** (-k / 4) for k in range(5)]
            exact = [num_images * weight / sum(weights) for weight in weights]
            expected = [math.floor(value) for value in exact]
            for k in sorted(range(5), key=lambda k: expected[k] - exact[k]):
                expected[k] += 1 if sum(expected) < num_images else 0
            assert counts == expected and sum(counts) == num_images

    def test_balanced_at_one(self) -> None:
        assert long_tail_counts(30, 3, 1).tolist() == [10, 10, 10]
        assert long_tail_counts(32, 3, 1).tolist() == [11, 11, 10]

    def test_misuse(self) -> None:
        with pytest.raises(ValueError, match="imbalance must be at least 1, got 0.5"):
            long_tail_counts(10, 2, 0.5)
        for num_images, imbalance in ((2, 1.0), (20, 1000.0), (20, math.inf)):
            with pytest.raises(ValueError, match="leave a class without any"):
                long_tail_counts(num_images, 3, imbalance)


class TestResampleRows:
    def classes(self) -> Tensor:
        """Return 20 rows of each of 4 classes, mixed."""
        order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
        return (torch.arange(80) % 4)[order]

    def rows(self, num_images: int, imbalance: float = 8, seed: int = SEED) -> Tensor:
        return resample_rows(
            self.classes(),
            num_images=num_images,
            num_classes=4,
            imbalance=imbalance,
            seed=seed,
        )

    def test_the_classes_follow_the_long_tail(self) -> None:
        for seed in range(5):
            rows = self.rows(60, seed=seed)
            counts = torch.bincount(self.classes()[rows], minlength=4)
            expected = long_tail_counts(60, 4, 8)
            assert torch.equal(counts.sort(descending=True).values, expected)
            assert rows.dtype == torch.int64

    def test_without_replacement_where_there_are_enough(self) -> None:
        rows = self.rows(37)
        assert len(rows) == 37 and len(set(rows.tolist())) == 37

    def test_a_class_with_too_few_repeats_evenly(self) -> None:
        counts_M = torch.bincount(self.rows(150), minlength=80)
        for count, class_index in self.ranked(150):
            of_class = counts_M[self.classes() == class_index].tolist()
            assert sum(of_class) == count
            assert set(of_class) <= {count // 20, -(-count // 20)}

    def ranked(self, num_images: int) -> list[tuple[int, int]]:
        """Return count and class, as they were drawn."""
        counts = torch.bincount(self.classes()[self.rows(num_images)], minlength=4).tolist()
        ranked = sorted(zip(counts, range(4), strict=True), reverse=True)
        assert [count for count, _ in ranked] == long_tail_counts(num_images, 4, 8).tolist()
        assert ranked[0][0] > 60  # more than three times all there are
        return ranked

    def test_each_class_may_be_the_frequent_one(self) -> None:
        frequent = set()
        for seed in range(30):
            counts = torch.bincount(self.classes()[self.rows(40, seed=seed)], minlength=4)
            frequent.add(int(counts.argmax()))
        assert frequent == {0, 1, 2, 3}

    def test_only_the_seed_decides(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = self.rows(40)
        torch.manual_seed(1)
        assert torch.equal(self.rows(40), first)
        torch.manual_seed(0)
        self.rows(40)
        assert torch.equal(torch.get_rng_state(), before)
        assert len({tuple(self.rows(40, seed=seed).tolist()) for seed in range(6)}) == 6

    def test_rows_are_in_random_order(self) -> None:
        classes = self.classes()[self.rows(60)]
        changes = sum(one != other for one, other in pairwise(classes.tolist()))
        assert changes > 20  # 3 if class came after class

    def test_a_class_without_images_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no image of class 1"):
            resample_rows(torch.tensor([0, 2, 2]), num_images=6, num_classes=3, imbalance=1, seed=0)


def degrade(images: Tensor, **strengths: Any) -> Tensor:
    (degraded,) = degrade_chunks([images], **strengths)
    return degraded


def make_images(height: int = 7, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, height, width)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def reflected(index: int, size: int) -> int:
    """Return the place that stands for one beyond the edge, the edge itself not repeated."""
    index = abs(index)
    return index if index < size else 2 * (size - 1) - index


def naive_blur(image: list[list[float]], sigma: float, radius: int) -> list[list[float]]:
    height, width = len(image), len(image[0])
    offsets = range(-radius, radius + 1)
    weights = {
        (a, b): math.exp(-(a * a + b * b) / (2 * sigma**2)) for a in offsets for b in offsets
    }
    total = sum(weights.values())
    return [
        [
            sum(
                weight * image[reflected(y + a, height)][reflected(x + b, width)]
                for (a, b), weight in weights.items()
            )
            / total
            for x in range(width)
        ]
        for y in range(height)
    ]


class TestDegrade:
    def test_nothing_asked_for_is_the_images_themselves(self) -> None:
        images = make_images()
        assert degrade(images, blur=0, noise=0, contrast=1, seed=SEED) is images

    @pytest.mark.parametrize(("sigma", "radius"), [(0.1, 1), (0.7, 2), (1.0, 3), (4.0, 6)])
    def test_blur_equals_a_naive_convolution(self, sigma: float, radius: int) -> None:
        """Out to three standard deviations, as far as the image's smaller side reflects."""
        images = make_images()
        before = images.clone()
        got = degrade(images, blur=sigma, noise=0, contrast=1, seed=SEED)
        assert torch.equal(images, before)
        for image, blurred in zip(images.flatten(0, 1), got.flatten(0, 1), strict=True):
            expected = torch.tensor(naive_blur(image.tolist(), sigma, radius))
            assert float((blurred - expected).abs().max()) < 0.501  # rounding to bytes
        if sigma >= 0.7:
            assert float(got.float().std()) < 0.8 * float(images.float().std())

    def test_contrast_by_hand(self) -> None:
        """About the mean of the image, all channels: 100 and 160, and 0 and 255."""
        images = torch.tensor([[40, 80], [120, 160], [0, 0], [255, 255]], dtype=torch.uint8)
        images = images.view(2, 2, 1, 2)
        half = degrade(images, blur=0, noise=0, contrast=0.5, seed=SEED)
        assert half.flatten().tolist() == [70, 90, 110, 130, 64, 64, 191, 191]
        double = degrade(images, blur=0, noise=0, contrast=2, seed=SEED)
        assert double.flatten().tolist() == [0, 60, 140, 220, 0, 0, 255, 255]

    def test_noise_is_normal_white_and_seeded(self) -> None:
        grey = torch.full((4, 3, 40, 40), 128, dtype=torch.uint8)
        noise = [
            degrade(grey, blur=0, noise=0.1, contrast=1, seed=seed).float() / 255 - 128 / 255
            for seed in (SEED, SEED, SEED + 1)
        ]
        assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
        assert float(noise[0].mean()) == pytest.approx(0, abs=0.003)
        assert float(noise[0].std()) == pytest.approx(0.1, rel=0.03)
        beyond = float((noise[0].abs() > 0.1).float().mean())
        assert beyond == pytest.approx(0.317, abs=0.02)
        pixels = noise[0].flatten(2).transpose(1, 2).reshape(-1, 3)
        assert float((torch.corrcoef(pixels.T) - torch.eye(3)).abs().max()) < 0.05
        neighbours = torch.stack([noise[0][..., :-1].flatten(), noise[0][..., 1:].flatten()])
        assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 0.05
        assert not torch.equal(noise[0][0], noise[0][1])

    def test_the_order_is_blur_then_contrast_then_noise(self) -> None:
        images = make_images()
        got = degrade(images, blur=1, noise=0.2, contrast=0.5, seed=SEED)
        one = degrade(images, blur=1, noise=0, contrast=1, seed=SEED)
        two = degrade(one, blur=0, noise=0, contrast=0.5, seed=SEED)
        three = degrade(two, blur=0, noise=0.2, contrast=1, seed=SEED)
        # Rounding on the way, twice.
        assert int((got.int() - three.int()).abs().max()) <= 2
        other = degrade(images, blur=0, noise=0.2, contrast=1, seed=SEED)
        other = degrade(other, blur=1, noise=0, contrast=0.5, seed=SEED)
        assert int((got.int() - other.int()).abs().max()) > 20

    def test_bytes_are_clamped_and_never_wrap(self) -> None:
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 30, 30)
        got = degrade(ends, blur=0, noise=0.1, contrast=1, seed=SEED)
        assert got.dtype == torch.uint8 and got.shape == ends.shape
        assert int(got[0].max()) < 128 < int(got[1].min())
        assert 0.4 < float((got[0] == 0).float().mean()) < 0.6

    def test_parts_come_out_as_the_whole_does(self) -> None:
        images = torch.cat([make_images(8, 8), 255 - make_images(8, 8)])
        strengths = {"blur": 1.0, "noise": 0.2, "contrast": 0.5}
        whole = degrade(images, **strengths, seed=SEED)
        parts = list(degrade_chunks(torch.split(images, 4), **strengths, seed=SEED))
        assert [len(part) for part in parts] == [4, 2]
        assert torch.equal(torch.cat(parts), whole)
        assert not torch.equal(whole[:4], degrade(images[:4], **strengths, seed=SEED + 1))

    def test_the_global_stream_is_neither_used_nor_moved(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        degrade(make_images(), blur=1, noise=0.2, contrast=0.5, seed=SEED)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        "strengths", [(-1, 0, 1), (0, -0.1, 1), (0, 0, 0), (0, 0, -1), (math.nan, 0, 1)]
    )
    def test_misuse(self, strengths: tuple[float, float, float]) -> None:
        blur, noise, contrast = strengths
        with pytest.raises(ValueError, match="contrast above 0"):
            degrade(make_images(), blur=blur, noise=noise, contrast=contrast, seed=SEED)
