from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdci.synthesis.batch_statistics import variance_and_mean

FORMATS = [torch.contiguous_format, torch.channels_last]
AXES = (0, 2, 3)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return maps whose channels differ in mean and deviation."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=random, dtype=torch.float64)
    by_channel = torch.linspace(0.5, 3, shape[1], dtype=torch.float64).view(-1, 1, 1)
    return (by_channel * noise + by_channel.flip(0)).to(dtype)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_a_loop_over_channels(memory_format: torch.memory_format) -> None:
    maps = draw(3, 4, 5, 2, dtype=torch.float64).contiguous(memory_format=memory_format)
    variance, mean = variance_and_mean(maps)
    for channel in range(4):
        values = maps[:, channel].flatten().tolist()
        expected = sum(values) / len(values)
        assert float(mean[channel]) == pytest.approx(expected, rel=1e-12)
        spread = sum((value - expected) ** 2 for value in values) / len(values)
        assert float(variance[channel]) == pytest.approx(spread, rel=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (64, 96, 8, 8), (33, 7, 3, 5), (9, 4, 1, 1)])
def test_many_rows_are_summed_as_precisely_as_by_var_mean(
    shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    maps = draw(*shape).contiguous(memory_format=memory_format)
    for found, expected in zip(
        variance_and_mean(maps), torch.var_mean(maps, dim=AXES, correction=0), strict=True
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_bfloat16_is_summed_in_float32(memory_format: torch.memory_format) -> None:
    maps = draw(16, 8, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=memory_format)
    maps.requires_grad_()
    exact = torch.var_mean(maps.detach().double(), dim=AXES, correction=0)
    for found, expected in zip(variance_and_mean(maps), exact, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    variance, mean = variance_and_mean(maps)
    (gradient,) = torch.autograd.grad((variance + mean).sum(), maps)
    rows = maps.numel() / 8
    by_hand = (1 + 2 * (maps.detach().double() - exact[1].view(-1, 1, 1))) / rows
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), by_hand, rtol=1e-2, atol=1e-2 / rows)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients(memory_format: torch.memory_format) -> None:
    maps = draw(3, 4, 2, 5, dtype=torch.float64).contiguous(memory_format=memory_format)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(variance_and_mean, (maps,))
    assert torch.autograd.gradgradcheck(variance_and_mean, (maps,))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_gradient_has_the_format_of_the_maps(memory_format: torch.memory_format) -> None:
    """Of another one, adding it to the network's own gradient would cost a copy a layer."""
    maps = draw(3, 4, 2, 5).contiguous(memory_format=memory_format).requires_grad_()
    (gradient,) = torch.autograd.grad(variance_and_mean(maps)[0].sum(), maps)
    assert gradient.is_contiguous(memory_format=memory_format)
