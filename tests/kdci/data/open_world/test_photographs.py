from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdci.data.open_world.photographs import LARGEST_SIDE, PhotographCrops, area_crops, summed_areas


def test_area_average_equals_a_crop_by_crop_average() -> None:
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (2, 3, 40, 50), generator=generator, dtype=torch.uint8)
    which, sides = torch.tensor([0, 1, 1, 0]), torch.tensor([4, 8, 40, 28])
    tops, lefts = torch.tensor([36, 3, 0, 5]), torch.tensor([46, 42, 10, 7])
    got = area_crops(summed_areas(photos), which, tops, lefts, sides, image_size=4)
    for k in range(4):
        side, top, left = int(sides[k]), int(tops[k]), int(lefts[k])
        crop = photos[which[k], :, top : top + side, left : left + side].double()
        assert torch.equal(got[k], F.avg_pool2d(crop, side // 4).round().to(torch.uint8))


def test_fractional_areas_weigh_the_pixels_they_cut() -> None:
    photo = torch.tensor([[0, 100, 200], [0, 100, 200], [0, 100, 200]], dtype=torch.uint8)
    zero, three = torch.tensor([0]), torch.tensor([3])
    got = area_crops(summed_areas(photo[None, None]), zero, zero, zero, three, image_size=2)
    # Each half covers one and a half columns: (0 + 100/2) / 1.5 and (100/2 + 200) / 1.5.
    assert got.flatten().tolist() == [33, 167, 33, 167]


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_reproducible_varied_and_of_real_content(channels: int) -> None:
    def draw(seed: int) -> torch.Tensor:
        crops = PhotographCrops(num_images=600, image_size=16, channels=channels, seed=seed)
        return crops.rows(torch.arange(600))

    first = draw(0)
    assert first.shape == (600, channels, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))
    assert len({image.numpy().tobytes() for image in first}) == 600
    assert first.float().std() > 30


def test_the_size_of_the_photographs() -> None:
    whole = PhotographCrops(num_images=2, image_size=LARGEST_SIDE, channels=3, seed=0)
    assert whole.rows(torch.arange(2)).shape == (2, 3, 427, 427)
