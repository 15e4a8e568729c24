"""Pools larger than what a stage may hold: peak memory does not grow with them."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

from kdci.data.bank.mapped_images import MappedImages, save_npy_chunks
from kdci.deconfounding import clustering
from kdci.models import PixelModel
from kdci.models.networks import Networks
from kdci.models.pixel_model import Prediction
from kdci.training.scoring import ScoredSet
from tests.peak import peak_of

FEW, MANY = 10_000, 100_000
ALLOWED = (MANY - FEW) * 3 * 32 * 32 // 4
"""A quarter of the bytes that the larger pool has more: predictions and row numbers are held."""


class Sampler(nn.Module):
    """A teacher that costs nothing: linear in a few pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> Prediction:
        features = images[:, :, ::8, ::8].flatten(1)
        return Prediction(self.linear(features), features)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return PixelModel(Sampler(), mean=(0.5,) * 3, std=(0.5,) * 3).eval()


@pytest.fixture
def large(built, teacher, monkeypatch, tmp_path):
    """The smoke project on 32x32 colour images, with a pool of noise as large as one likes."""
    monkeypatch.setattr(Networks, "teacher", lambda *_: teacher)
    return built.edit(data__name="cifar10", data__path=str(tmp_path), grid__controls=["noise"])


def as_of_fast(project):
    """Put the pool of noise in the place of Fast's."""
    place = project.layout.pool("wrn-10-1", "fast", 0)
    shutil.rmtree(place)
    shutil.copytree(project.layout.pool("wrn-10-1", "noise", 0), place)


@pytest.mark.slow
def test_a_pool_and_its_dictionary_of_any_size(large, call, monkeypatch):
    monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", FEW // 2)  # as above 200,000 images
    peaks = {"substitute": [], "dictionary": []}
    for num_images in (FEW, MANY):
        large.edit(methods__noise__num_images=num_images)
        peaks["substitute"].append(peak_of(lambda: large.build(call("substitute", "noise"))))
        as_of_fast(large)  # a control has no dictionary
        peaks["dictionary"].append(peak_of(lambda: large.build(call("dictionary"))))
    for stage, (few, many) in peaks.items():
        assert many - few < ALLOWED, stage
    assert large.card(call("dictionary"))["facts"]["num_predictions"] == 0.95 * MANY


@pytest.mark.slow
def test_a_pool_with_a_known_shift_of_any_size(large, call):
    large.edit(methods__noise__num_images=FEW).build(call("substitute", "noise"))
    as_of_fast(large)
    large.edit(grid__shifts=["poor"], grid__shift_arms=["vanilla"])
    large.edit(shifts={"poor": {"noise": 0.2, "blur": 0.5}})
    peaks = []
    for num_images in (FEW, MANY):
        large.edit(shift={"base": "fast", "num_images": num_images})
        peaks.append(peak_of(lambda: large.build(call("shift", "poor"))))
    assert peaks[1] - peaks[0] < ALLOWED
    assert large.card(call("shift", "poor"))["facts"]["num_images"] == MANY


@pytest.mark.slow
def test_held_out_images_of_any_number_are_scored(teacher, tmp_path):
    peaks = []
    for num_images in (FEW, MANY):
        file = tmp_path / f"{num_images}.npy"
        part = torch.full((1000, 3, 32, 32), 7, dtype=torch.uint8)
        save_npy_chunks([part] * (num_images // 1000), file, num_images=num_images)
        images = MappedImages(file)
        peaks.append(
            peak_of(lambda images=images: ScoredSet.of_teacher(teacher, images, batch_size=500))
        )
    assert peaks[1] - peaks[0] < ALLOWED
