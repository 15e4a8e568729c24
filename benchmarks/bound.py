"""The bound: bare passes of a case's networks, at this machine's best precision and format.

Random tensors go in, a sum is differentiated; there are no data, no loss and no optimiser. The
layers are the networks' own, BatchNorms as they are: a project that folds them can go beyond.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.interleaved import Action, wait_for
from kdci.models.generators.generating import Arithmetic, BesideTeacher
from kdci.training.runtime import computes_bf16

_TRIALS = 2


@dataclass(frozen=True)
class Setting:
    """A precision and a memory format.

    Attributes:
        dtype: Of weights and images.
        memory_format: Of both.
    """

    dtype: torch.dtype
    memory_format: torch.memory_format

    def __str__(self) -> str:
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        is_last = self.memory_format == torch.channels_last
        return f"{precision} {'channels-last' if is_last else 'contiguous'}"

    def of(self, network: nn.Module) -> nn.Module:
        """Return a network in this setting."""
        if isinstance(network, BesideTeacher):  # its maps follow this, and not its weights
            network.arithmetic = Arithmetic(None, self.memory_format == torch.channels_last)
        cast = network.to(self.dtype)
        return cast.to(memory_format=self.memory_format)

    def images(self, batch_size: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return random images in this setting."""
        images = torch.rand(batch_size, *shape, device=device)
        return images.to(dtype=self.dtype, memory_format=self.memory_format)


def settings(device: torch.device) -> list[Setting]:
    """Return what is worth a try: bf16 only where the device computes it."""
    dtypes = [torch.float32, *([torch.bfloat16] if computes_bf16(device) else [])]
    formats = (torch.contiguous_format, torch.channels_last)
    return [Setting(*pair) for pair in product(dtypes, formats)]


def fastest(build: Callable[[Setting], Action], device: torch.device) -> tuple[Action, Setting]:
    """Return a pass in its fastest setting, and which that is.

    Args:
        build: Prepares the pass in a setting.
        device: Where it is.
    """
    best: tuple[float, Action, Setting] | None = None
    for setting in settings(device):
        action = build(setting)
        seconds = min(_seconds(action, device) for _ in range(1 + _TRIALS))
        if best is None or seconds < best[0]:
            best = (seconds, action, setting)
    assert best is not None
    return best[1], best[2]


def _seconds(action: Action, device: torch.device) -> float:
    wait_for(device)
    began = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - began


def forward_pass(network: nn.Module, images: Tensor) -> Action:
    """Return a pass of a frozen network."""
    network.eval().requires_grad_(False)

    @torch.no_grad()
    def run() -> None:
        network(images)

    return run


def training_pass(network: nn.Module, images: Tensor) -> Action:
    """Return a forward and a backward pass of a network that is trained."""
    network.train()

    def run() -> None:
        for weight in network.parameters():
            weight.grad = None
        logits_of(network(images)).sum().backward()  # type: ignore[no-untyped-call]

    return run


def logits_of(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return the logits out of what a classifier gives."""
    return output if isinstance(output, Tensor) else output[0]
