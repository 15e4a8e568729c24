"""Networks beside a teacher: same weights and, up to rounding, same outputs in every arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from kdci.models import PixelModel, build_backbone
from kdci.models.generators.generating import (
    Arithmetic,
    BesideTeacher,
    arithmetic_of,
    build_beside,
    build_seeded,
)
from kdci.models.generators.generator import DaflGenerator, Generator
from kdci.synthesis.instance_discrimination import ProjectionHead
from kdci.synthesis.patch_game import PatchDiscriminator

SIZE = {"latent_dim": 6, "image_size": 16, "channels": 3, "width": 8}
NETWORKS: dict[str, tuple[Callable[[], BesideTeacher], tuple[int, ...]]] = {
    "small": (partial(Generator, **SIZE), (6,)),
    "large": (partial(Generator, **SIZE, large=True), (6,)),
    "dafl": (partial(DaflGenerator, **SIZE), (6,)),
    "discriminator": (partial(PatchDiscriminator, channels=3, width=8), (3, 16, 16)),
    "head": (partial(ProjectionHead, 12, 5), (12,)),
}
"""How each is built, and the shape of one of its inputs."""


def make_teacher(
    *, channels_last: bool = False, autocast_dtype: torch.dtype | None = None
) -> PixelModel:
    backbone = build_backbone("wrn-10-1", num_classes=3, channels=3)
    if channels_last:
        backbone = backbone.to(memory_format=torch.channels_last)
    return PixelModel(backbone, mean=[0.5] * 3, std=[0.2] * 3, autocast_dtype=autocast_dtype)


def inputs_for(name: str) -> Tensor:
    shape = (8, *NETWORKS[name][1])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def build(name: str, arithmetic: Arithmetic) -> BesideTeacher:
    network = build_seeded(NETWORKS[name][0], torch.Generator().manual_seed(0))
    network.arithmetic = arithmetic
    return network


def inputs_of_layers(
    network: nn.Module, kind: type[nn.Module], inputs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the network's output, and what its layers of a kind were given."""
    seen: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        for layer in network.modules()
        if isinstance(layer, kind)
    ]
    found = network(inputs)
    for handle in handles:
        handle.remove()
    return found, seen


def test_arithmetic_is_the_teachers() -> None:
    assert arithmetic_of(make_teacher()) == Arithmetic(None, channels_last=False)
    assert arithmetic_of(make_teacher(channels_last=True)) == Arithmetic(None, channels_last=True)
    teacher = make_teacher(channels_last=True, autocast_dtype=torch.bfloat16)
    assert arithmetic_of(teacher) == Arithmetic(torch.bfloat16, channels_last=True)


def test_built_beside_a_teacher_the_weights_are_those_of_the_stream() -> None:
    maker, streams = NETWORKS["small"][0], [torch.Generator().manual_seed(3) for _ in range(2)]
    teacher = make_teacher(channels_last=True)
    beside, alone = build_beside(teacher, maker, streams[0]), build_seeded(maker, streams[1])
    assert beside.arithmetic == arithmetic_of(teacher) != alone.arithmetic
    for one, other in zip(beside.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other) and one.is_contiguous()
    assert torch.equal(streams[0].get_state(), streams[1].get_state())


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_changes_neither_outputs_nor_gradients(name: str) -> None:
    inputs = inputs_for(name)
    found: list[list[Tensor]] = []
    for channels_last in (False, True):
        network = build(name, Arithmetic(channels_last=channels_last))
        output, maps = inputs_of_layers(network, nn.BatchNorm2d, inputs)
        assert len(maps) == {"small": 3, "large": 3, "dafl": 4}.get(name, len(maps))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(one.is_contiguous(memory_format=layout) for one in maps)
        tilted = (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum()
        found.append([output, *torch.autograd.grad(tilted, list(network.parameters()))])
    # Of all tensors: a bias before a BatchNorm has a gradient of 0, a sum of large ones.
    scale = max(float(one.detach().abs().max()) for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_under_bf16_the_layers_are_cast_and_the_output_is_not(name: str) -> None:
    inputs = inputs_for(name)
    exact = build(name, Arithmetic())(inputs)
    network = build(name, Arithmetic(torch.bfloat16, channels_last=True))
    output, seen = inputs_of_layers(network, nn.LeakyReLU, inputs)
    assert all(maps.dtype == torch.bfloat16 for maps in seen) and (seen or name == "head")
    assert output.dtype == torch.float32 and {p.dtype for p in network.parameters()} == {
        torch.float32
    }
    # bfloat16 keeps 8 bits: not the same, and not far off.
    error = (output - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 1e-5 < float(error.detach()) < 0.05
    # All of float32's bits are in use: what comes last is no bfloat16 that was widened.
    if name != "discriminator":
        assert not torch.equal(output, output.bfloat16().float())


def test_batch_statistics_stay_float32_under_bf16() -> None:
    """A mean of 300 and a deviation of 1: summed in bfloat16, the variance would be lost."""
    generator = build("small", Arithmetic(torch.bfloat16, channels_last=True))
    assert isinstance(generator, Generator)
    with torch.no_grad():
        generator.linear.bias.fill_(300.0)
    maps: list[Tensor] = []
    generator.norm.register_forward_hook(lambda _, given, __: maps.append(given[0].detach()))
    generator.norm.momentum = 1.0
    generator(inputs_for("small"))
    (given,) = maps
    assert given.dtype == torch.bfloat16 and generator.norm.running_mean is not None
    exact = given.double().mean(dim=(0, 2, 3))
    assert generator.norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(generator.norm.running_mean.double(), exact, rtol=1e-6, atol=0)


def test_a_callers_autocast_does_not_reach_a_float32_network() -> None:
    network, inputs = build("small", Arithmetic()), inputs_for("small")
    expected = network(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(inputs), expected)
