from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from kdci.data.bank import resized_crop
from kdci.data.bank.resized_crop import (
    ResizedCrop,
    apply_resized_crop,
    draw_resized_crop,
    random_resized_crop,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    num: int, *, height: int = 32, width: int = 32, scale: tuple[float, float] = (0.25, 1.0)
) -> ResizedCrop:
    return draw_resized_crop(
        num, height=height, width=width, scale=scale, flip=True, generator=seeded(0)
    )


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (9, 14)])
def test_equals_torchvision_image_by_image(height: int, width: int, antialias: bool) -> None:
    images = torch.rand(64, 3, height, width, generator=seeded(1))
    drawn = draw(64, height=height, width=width, scale=(0.02, 1.0))
    assert len(set(drawn.heights.tolist())) > 4 and drawn.flips.any() and not drawn.flips.all()
    got = random_resized_crop(images, scale=(0.02, 1.0), flip=True, generator=seeded(0))
    for index, image in enumerate(images):
        top, left, box_height, box_width = (int(part[index]) for part in drawn[:4])
        expected = vision.resized_crop(
            image,
            top,
            left,
            box_height,
            box_width,
            [height, width],
            InterpolationMode.BILINEAR,
            antialias=antialias,
        )
        expected = vision.hflip(expected) if drawn.flips[index] else expected
        torch.testing.assert_close(got[index], expected, atol=3e-6, rtol=0)


def test_gradient_is_torchvisions_and_ends_at_the_box() -> None:
    images = torch.rand(1, 1, 8, 8, generator=seeded(2)).requires_grad_()
    weights = torch.rand(1, 1, 8, 8, generator=seeded(3))
    drawn = ResizedCrop(*(torch.tensor([value]) for value in (2, 1, 5, 4)), torch.tensor([True]))
    (got,) = torch.autograd.grad((apply_resized_crop(images, drawn) * weights).sum(), images)
    resized = vision.hflip(vision.resized_crop(images, 2, 1, 5, 4, [8, 8]))
    (expected,) = torch.autograd.grad((resized * weights).sum(), images)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:7, 1:5] = True
    assert torch.equal(got[0, 0] != 0, inside)


def test_the_whole_box_is_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resized_crop, "RATIO", (5 / 7, 5 / 7))
    images = torch.rand(4, 2, 7, 5, generator=seeded(0), dtype=torch.float64)
    whole = draw(4, height=7, width=5, scale=(1.0, 1.0))
    assert whole.heights.tolist() == [7] * 4 and whole.widths.tolist() == [5] * 4
    got = apply_resized_crop(images, whole._replace(flips=torch.tensor([0, 1, 0, 1]).bool()))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got[::2], images[::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1::2], images[1::2].flip(3), atol=1e-6, rtol=0)


def test_boxes_follow_the_ranges() -> None:
    drawn = draw(20000)
    areas = (drawn.heights * drawn.widths) / 1024
    logs = (drawn.widths / drawn.heights).log()
    assert 0.23 < float(areas.min()) < 0.27 and float(areas.max()) == 1.0
    assert math.exp(float(logs.min())) > 0.7 and math.exp(float(logs.max())) < 1.43
    assert int((drawn.tops + drawn.heights).max()) == 32 and int(drawn.tops.min()) == 0
    assert int((drawn.lefts + drawn.widths).max()) == 32 and int(drawn.lefts.min()) == 0
    assert abs(int(drawn.flips.sum()) - 10000) < 300
    assert not torch.equal(drawn.tops, drawn.lefts)


def test_boxes_are_distributed_like_torchvisions() -> None:
    ours = torch.stack(draw(20000)[:4], dim=1).float()
    blank = torch.empty(1, 32, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [
            RandomResizedCrop.get_params(blank, [0.25, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)
        ]
    theirs = torch.tensor(params).float()
    # Six standard errors of the smaller sample.
    margin = 6 * theirs.std(0) / 6000**0.5
    assert bool(((ours.mean(0) - theirs.mean(0)).abs() < margin).all())
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.05, atol=0)
    ours_area, theirs_area = (box[:, 2] * box[:, 3] for box in (ours, theirs))
    for share in (0.1, 0.5, 0.9):
        assert abs(float(ours_area.quantile(share) - theirs_area.quantile(share))) < 25


@pytest.mark.parametrize(
    ("height", "width", "box"), [(40, 4, (17, 0, 5, 4)), (4, 40, (0, 17, 4, 5))]
)
def test_where_no_box_can_fit_the_centre_is_taken(
    height: int, width: int, box: tuple[int, ...]
) -> None:
    drawn = draw(50, height=height, width=width, scale=(0.9, 1.0))
    assert bool((torch.stack(drawn[:4], dim=1) == torch.tensor(box)).all())


def test_as_many_tries_as_torchvision_before_the_whole_image_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A box of nearly the whole area fits a square image only if it is nearly square.
    settings = ((0.9, 1.0), (0.5, 2.0))
    monkeypatch.setattr(resized_crop, "RATIO", settings[1])
    drawn = draw(20000, height=30, width=30, scale=settings[0])
    boxes = torch.stack(drawn[:4], dim=1)
    assert int(boxes[:, 2:].min()) >= 26 and int(boxes[:, 2:].max()) == 30
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.empty(1, 30, 30)
        theirs = [RandomResizedCrop.get_params(blank, *map(list, settings)) for _ in range(3000)]
    share = theirs.count((0, 0, 30, 30)) / 3000
    whole = (boxes == torch.tensor([0, 0, 30, 30])).all(dim=1).float().mean()
    assert 0.2 < share < 0.6 and float(whole) == pytest.approx(share, abs=0.04)


def test_no_flip_where_none_is_lawful() -> None:
    drawn = draw_resized_crop(
        50, height=8, width=8, scale=(0.25, 1.0), flip=False, generator=seeded(0)
    )
    assert not drawn.flips.any()


def test_misuse_is_refused() -> None:
    images = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match="floating point"):
        random_resized_crop(images.byte(), scale=(0.5, 1.0), flip=False, generator=seeded(0))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        random_resized_crop(images[0], scale=(0.5, 1.0), flip=False, generator=seeded(0))
