"""Generators: published counts, ranges, a naive forward, the reset rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdci.models.generators.generator import DaflGenerator, Generator, reset_parameters_

SMALL: dict[str, Callable[[], Any]] = {
    "small": partial(Generator, latent_dim=8, image_size=16, channels=1, width=4),
    "large": partial(Generator, latent_dim=8, image_size=16, channels=1, width=4, large=True),
    "dafl": partial(DaflGenerator, latent_dim=8, image_size=16, channels=1, width=4),
}


def count(generator: nn.Module) -> int:
    return sum(parameter.numel() for parameter in generator.parameters())


def latents_for(generator: Any, size: int) -> Tensor:
    return torch.randn(size, generator.linear.in_features)


@pytest.mark.parametrize(
    ("latent_dim", "image_size", "large", "expected"),
    [
        (256, 32, False, 2_328_899),
        (512, 32, False, 4_426_051),
        (256, 64, False, 8_644_931),
        (512, 64, False, 17_033_539),
        (100, 32, True, 2_026_051),
        (512, 32, True, 8_776_259),
    ],
)
def test_published_counts(latent_dim: int, image_size: int, large: bool, expected: int) -> None:
    with torch.device("meta"):
        generator = Generator(latent_dim=latent_dim, image_size=image_size, channels=3, large=large)
    assert count(generator) == expected


def test_dafl_count_by_hand() -> None:
    # linear 1000*8192 + 8192, BN 2*128, conv 128*128*9 + 128, BN 2*128,
    # conv 128*64*9 + 64, BN 2*64, conv 64*3*9 + 3, BN without weights
    expected = 8_200_192 + 256 + 147_584 + 256 + 73_792 + 128 + 1_731
    with torch.device("meta"):
        generator = DaflGenerator(image_size=32, channels=3)
    assert count(generator) == expected


@pytest.mark.parametrize("name", SMALL)
def test_shapes_range_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    generator = SMALL[name]()
    latents = latents_for(generator, 4).requires_grad_()
    images = generator(latents)
    assert images.shape == (4, 1, 16, 16)
    if name == "dafl":
        # Normalised space: zero mean and unit variance over the batch.
        assert images.mean().item() == pytest.approx(0, abs=1e-4)
        assert images.var(correction=0).item() == pytest.approx(1, abs=0.02)
    else:
        assert images.min() >= 0 and images.max() <= 1
    images.square().sum().backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("large", [False, True])
def test_forward_equals_layers_written_out(large: bool) -> None:
    torch.manual_seed(0)
    generator = Generator(latent_dim=6, image_size=8, channels=3, width=4, large=large)
    reset_parameters_(generator, torch.Generator().manual_seed(0))
    weights = [parameter.detach() for parameter in generator.parameters()]
    linear, linear_bias, *norms_and_convolutions, last, last_bias = weights
    latents = torch.randn(5, 6)

    def normalise(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        mean = maps.mean(dim=(0, 2, 3), keepdim=True)
        var = maps.var(dim=(0, 2, 3), correction=0, keepdim=True)
        return (maps - mean) / (var + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    maps = (latents @ linear.T + linear_bias).reshape(5, -1, 2, 2)
    maps = normalise(maps, *norms_and_convolutions[:2])
    for convolution, scale, shift in (norms_and_convolutions[2:5], norms_and_convolutions[5:]):
        maps = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        maps = normalise(F.conv2d(maps, convolution, padding=1), scale, shift)
        maps = torch.where(maps > 0, maps, 0.2 * maps)
    expected = 1 / (1 + torch.exp(-F.conv2d(maps, last, last_bias, padding=1)))
    torch.testing.assert_close(generator(latents), expected)


def test_dafl_blocks_have_the_authors_eps_and_the_first_norm_pytorchs() -> None:
    generator = SMALL["dafl"]()
    eps = [layer.eps for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert eps == [1e-5, 0.8, 0.8, 1e-5]


@pytest.mark.parametrize(
    ("build", "image_size"), [(Generator, 30), (Generator, 0), (DaflGenerator, 18)]
)
def test_other_image_sizes_are_refused(build: Callable[..., nn.Module], image_size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, got {image_size}"):
        build(latent_dim=8, image_size=image_size, channels=3)


def test_reset_rule() -> None:
    generator = Generator(latent_dim=64, image_size=16, channels=3)
    for parameter in generator.parameters():
        nn.init.constant_(parameter, 7.0)
    reset_parameters_(generator, torch.Generator().manual_seed(3))
    for layer in generator.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            centre = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            standard_error = 0.02 / layer.weight.numel() ** 0.5
            assert layer.weight.mean().item() == pytest.approx(centre, abs=4 * standard_error)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.4)
            assert layer.bias is None or not layer.bias.any()
    assert generator.linear.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_reset_depends_on_the_stream_alone_and_may_take_one_layer() -> None:
    first, second = SMALL["dafl"](), SMALL["dafl"]()
    torch.manual_seed(11)
    global_state = torch.get_rng_state()
    reset_parameters_(first, torch.Generator().manual_seed(1))
    reset_parameters_(second, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), global_state)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(mine, other) for mine, other in pairs)

    reset_parameters_(second.norm, torch.Generator().manual_seed(2))
    changed = [not torch.equal(mine, other) for mine, other in pairs]
    names = [name for name, _ in first.named_parameters()]
    assert [name for name, did in zip(names, changed, strict=True) if did] == ["norm.weight"]
