from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank, to_bytes
from kdci.methods.noise import Noise, NoiseSource
from kdci.models import PixelModel
from kdci.substitution.base import SoftLabelCriterion, SourceContext

SPEC = DatasetSpec("tiny", 3, 8, 1, (0.5,), (0.5,), 1, True, ("a", "b", "c"))


def make_source(folder: Path, num_images: int = 3000) -> NoiseSource:
    folder.mkdir(exist_ok=True)
    bank = ImageBank(folder / "bank.bin", shape=(1, 8, 8))
    teacher = PixelModel(torch.nn.Identity(), mean=SPEC.mean, std=SPEC.std)
    # A module without weights has no device to tell.
    teacher.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    context = SourceContext(teacher, SPEC, bank, 3, 0.9, lambda: torch.empty(0))
    return NoiseSource(context, Noise(num_images=num_images))


def test_pixels_are_uniform_and_independent(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    metrics = list(source.prepare())
    assert [row["bank"] for row in metrics] == [*(256.0 * part for part in range(1, 12)), 3000.0]
    assert source.num_preparations == 12
    images = source.bank.rows(torch.arange(3000)).float() / 255
    counts = torch.histc(images, bins=10, min=0, max=1) / images.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.01, rtol=0)
    pixels = images.flatten(1)
    correlations = torch.corrcoef(pixels.T) - torch.eye(64)
    assert float(correlations.abs().max()) < 0.1


def test_the_pool_is_one_draw_whatever_parts_it_was_drawn_in(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    list(source.prepare())
    drawn = torch.rand((3000, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    assert torch.equal(source.bank.rows(torch.arange(3000)), to_bytes(drawn))


def test_resumes_and_repeats(tmp_path: Path) -> None:
    whole, first = make_source(tmp_path / "a"), make_source(tmp_path / "b")
    list(whole.prepare())
    next(first.prepare())
    state = first.state_dict()
    second = make_source(tmp_path / "b")
    second.load_state_dict(state)
    list(second.prepare())
    rows = torch.arange(3000)
    assert torch.equal(whole.bank.rows(rows), second.bank.rows(rows))
    assert torch.equal(whole.batch(8), second.batch(8))


def test_it_is_a_control_for_the_soft_label_methods(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    criterion = source.criterion()
    assert isinstance(criterion, SoftLabelCriterion) and criterion.temperature == 4.0
    assert source.refresh(source.context.teacher) == {}
    with pytest.raises(ValueError, match="num_images"):
        make_source(tmp_path, num_images=1)
