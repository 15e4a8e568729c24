"""Which memory a training step keeps: by storage, so that views of one are counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn


def storages(tensors: Iterator[Tensor]) -> dict[int, int]:
    """Return the bytes of each storage behind ``tensors``: views of one are counted once."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found


def kept_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Return the storages of a module's weights, buffers, gradients and momentum."""
    return storages(_lasting(module, optimizer))


def _lasting(module: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    yield from module.buffers()
    for parameter in module.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
        yield from (x for x in optimizer.state[parameter].values() if isinstance(x, Tensor))


def saved_by(forward: Callable[[], Tensor]) -> dict[int, int]:
    """Return the storages that a forward pass keeps for the backward pass."""
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return storages(iter(saved))
