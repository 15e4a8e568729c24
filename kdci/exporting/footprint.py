"""Size and speed of networks on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from kdci.exporting.formats import Model

BATCHES = (1, 32)
SECONDS = 3.0
"""How long one batch size may be measured, all networks together."""
LEAST_ROUNDS, MOST_ROUNDS = 5, 100
_BYTES = 4


@dataclass(frozen=True)
class Size:
    """How large networks are together.

    Attributes:
        parameters: Trainable numbers.
        weight_bytes: Of all float tensors of the state as float32: parameters, BatchNorm
            statistics, a dictionary.
    """

    parameters: int
    weight_bytes: int


def size_of(*modules: nn.Module) -> Size:
    """Return the size of modules that make one network."""
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    floats = [
        tensor
        for module in modules
        for tensor in module.state_dict().values()
        if tensor.is_floating_point()
    ]
    return Size(parameters, _BYTES * sum(tensor.numel() for tensor in floats))


@torch.inference_mode()
def median_latencies(
    models: Mapping[str, Model], images: Tensor, *, seconds: float = SECONDS
) -> dict[str, float]:
    """Return the median seconds of one forward pass, by model.

    The models take turns, so that a machine that slows down slows all of them. The first round
    is not counted.

    Args:
        models: Any number.
        images: One batch, (N, C, H, W).
        seconds: When to stop, once a few rounds are done.
    """
    taken: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(images)
    end = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, model in models.items():
            began = time.perf_counter()
            model(images)
            taken[name].append(time.perf_counter() - began)
    return {name: median(times) for name, times in taken.items()}
