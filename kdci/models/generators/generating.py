"""Networks that are trained beside a frozen teacher, and compute as the teacher does.

The teacher's memory format and precision were found to be fast on this device, and these networks
hand their images to it or learn from what it says of them. Feature maps follow the teacher;
weights stay float32 and contiguous: a convolution lays its few weights out by itself, which was
no slower, and so weights, gradients and Adam's moments have one format, stored or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdci.models.pixel_model import PixelModel, is_channels_last

Module = TypeVar("Module", bound=nn.Module)


def build_seeded(build: Callable[[], Module], random: torch.Generator) -> Module:
    """Return what ``build`` makes, its weights drawn on the CPU from ``random``.

    Args:
        build: Makes a module with torch's default initialisation.
        random: CPU stream; moves on by one number.
    """
    seed = int(torch.randint(2**62, (), generator=random))
    # Modules draw from the global CPU stream: seeded here, and put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


@dataclass(frozen=True)
class Arithmetic:
    """How a network computes.

    Attributes:
        autocast_dtype: Type of its matrix products, such as ``torch.bfloat16``; None: float32,
            also inside a caller's autocast region.
        channels_last: Whether its feature maps are stored channels-last.
    """

    autocast_dtype: torch.dtype | None = None
    channels_last: bool = False

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the context that a forward pass runs in."""
        return torch.autocast(
            device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def lay_out(self, maps_BCHW: Tensor) -> Tensor:
        """Return feature maps as they are to be stored; layers keep it up from there."""
        if self.channels_last:
            return maps_BCHW.contiguous(memory_format=torch.channels_last)
        return maps_BCHW


def arithmetic_of(teacher: PixelModel) -> Arithmetic:
    """Return how a teacher computes."""
    return Arithmetic(teacher.autocast_dtype, is_channels_last(teacher.backbone))


class BesideTeacher(nn.Module):
    """A network whose forward pass follows its ``arithmetic``, and returns its input's type.

    Attributes:
        arithmetic: How it computes: float32 and contiguous, until it is told otherwise.
    """

    arithmetic = Arithmetic()


Network = TypeVar("Network", bound=BesideTeacher)


def build_beside(
    teacher: PixelModel, build: Callable[[], Network], random: torch.Generator
) -> Network:
    """Return what ``build`` makes, on the teacher's device and computing as the teacher does.

    Args:
        teacher: Whose device, memory format and precision are taken over.
        build: Makes a network with torch's default initialisation.
        random: CPU stream that the weights are drawn from; moves on by one number.
    """
    network = build_seeded(build, random).to(teacher.mean.device)
    network.arithmetic = arithmetic_of(teacher)
    return network
