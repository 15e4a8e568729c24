from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.models.generators.upsampled_convolution import upsampled_convolution


def draw(height: int, width: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 3, height, width), (5, 3, 3, 3), (5,)]
    drawn = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in drawn]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_two_layers_and_so_do_the_gradients(
    height: int, width: int, memory_format: torch.memory_format
) -> None:
    maps, weight, bias = leaves = draw(height, width)
    shown = maps.contiguous(memory_format=memory_format)
    found = upsampled_convolution(shown, weight, bias)
    enlarged = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(enlarged, weight, bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    tilted = torch.linspace(-1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    pairs = (torch.autograd.grad((maps * tilted).sum(), leaves) for maps in (found, expected))
    for own, other in zip(*pairs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)


def test_one_pixel_written_out() -> None:
    """All that a lone pixel's four children see are each other, beside zeros."""
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    found = upsampled_convolution(torch.ones(1, 1, 1, 1), weight)
    assert found.flatten().tolist() == [4 + 5 + 7 + 8, 3 + 4 + 6 + 7, 1 + 2 + 4 + 5, 0 + 1 + 3 + 4]


def test_keeps_channels_last() -> None:
    maps = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    found = upsampled_convolution(maps, torch.rand(5, 3, 3, 3))
    assert found.is_contiguous(memory_format=torch.channels_last)
