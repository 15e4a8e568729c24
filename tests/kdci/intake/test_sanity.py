"""What noise tells of a teacher, and when an accuracy is no better than guessing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdci.config.catalog import DATASETS
from kdci.errors import NumericError, UserError
from kdci.intake.sanity import answers_to_noise, is_at_chance
from kdci.models import PixelModel, Prediction, build_pixel_model

SPEC = DATASETS["digits"]


class BrightQuarter(nn.Module):
    """Names the brightest quarter of the image, among ten classes."""

    def forward(self, images: torch.Tensor) -> Prediction:
        quarters = nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        logits = torch.cat([quarters, quarters.new_full((len(images), 6), -99.0)], dim=1)
        return Prediction(logits, quarters)


def test_answers_are_counted() -> None:
    model = PixelModel(BrightQuarter(), mean=SPEC.mean, std=SPEC.std)
    answers = answers_to_noise(model, SPEC, "x.pt")
    assert (answers.num_images, answers.num_classes) == (256, 4)
    assert answers.largest_share == pytest.approx(25, abs=10)
    assert answers_to_noise(model, SPEC, "x.pt") == answers


def test_answers_that_are_not_finite() -> None:
    model = build_pixel_model("wrn-10-1", SPEC).eval()
    nn.init.constant_(model.backbone.fc.bias, float("inf"))
    with pytest.raises(NumericError, match="not finite"):
        answers_to_noise(model, SPEC, "x.pt")


def test_a_size_the_network_does_not_take() -> None:
    from dataclasses import replace

    small = replace(SPEC, image_size=4)
    model = build_pixel_model("vgg-11", small).eval()
    with pytest.raises(UserError, match=r"does not take 4 px: .*--image-size"):
        answers_to_noise(model, small, "x.pt")


@pytest.mark.parametrize(
    ("accuracy", "num_classes", "num_images", "expected"),
    [
        (10.0, 10, 10_000, True),
        (10.8, 10, 10_000, True),  # one standard error is 0.3 points
        (11.0, 10, 10_000, False),
        (0.0, 10, 100, True),
        (60.0, 2, 100, True),
        (70.0, 2, 100, False),
    ],
)
def test_chance(accuracy: float, num_classes: int, num_images: int, expected: bool) -> None:
    assert is_at_chance(accuracy, num_classes=num_classes, num_images=num_images) is expected
