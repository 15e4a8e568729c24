"""Initial weights that depend on a given random stream, not on the process's global one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

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
