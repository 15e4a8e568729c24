"""How much memory a step needs: what autograd keeps for its way back, and the weights' share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

BATCHES = (2, 4)
"""The two batch sizes that the share of an image is found from."""


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps between a step's forward and backward passes.

    Attributes:
        per_image: What goes with the batch.
        fixed: The rest: weights that autocast has cast, for one.
    """

    per_image: float
    fixed: float

    def num_bytes(self, batch: int) -> int:
        """Return the bytes for a batch of so many images."""
        return round(self.fixed + self.per_image * batch)


def measure_activations(
    step: Callable[[int], None],
    modules: Iterable[nn.Module],
    *,
    batches: tuple[int, int] = BATCHES,
) -> Activations:
    """Count what two small steps keep, and what an image's share of it is.

    Args:
        step: Takes one step on a batch of so many images.
        modules: Their weights and buffers are not counted.
        batches: Sizes of the two steps, the smaller one first.
    """
    tensors = chain.from_iterable(chain(m.parameters(), m.buffers()) for m in modules)
    known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    found = []
    for batch in batches:
        saved = SavedBytes(known)
        with saved_tensors_hooks(saved.pack, saved.unpack):
            step(batch)
        found.append(saved.peak)
    small, large = batches
    per_image = (found[1] - found[0]) / (large - small)
    return Activations(per_image, max(0.0, found[0] - small * per_image))


class SavedBytes:
    """Counts the bytes of tensors that autograd has saved and not yet let go of.

    Attributes:
        peak: The most that there was at a time.

    Args:
        known: Addresses of storages that are not counted.
    """

    def __init__(self, known: Iterable[int] = ()) -> None:
        self.peak = 0
        self._known = frozenset(known)
        self._users: Counter[int] = Counter()
        self._now = 0

    def pack(self, tensor: Tensor) -> _Held:
        """Take note of a tensor; several views of one storage count once."""
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._known:
            size = 0
        self._users[address] += 1
        if self._users[address] == 1:
            self._now += size
            self.peak = max(self.peak, self._now)
        return _Held(tensor, self, address, size)

    @staticmethod
    def unpack(held: _Held) -> Tensor:
        """Give the tensor back."""
        return held.tensor

    def release(self, address: int, size: int) -> None:
        """Take note that a graph has let go of a tensor."""
        self._users[address] -= 1
        if self._users[address] == 0:
            self._now -= size


class _Held:
    """A saved tensor, which tells when it is let go."""

    def __init__(self, tensor: Tensor, saved: SavedBytes, address: int, size: int) -> None:
        self.tensor = tensor
        self._saved, self._address, self._size = saved, address, size

    def __del__(self) -> None:
        self._saved.release(self._address, self._size)


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters, without its buffers."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def state_bytes(module: nn.Module) -> int:
    """Return the bytes of what is stored of a module."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def measured_peak(step: Callable[[int], None], batch: int, device: torch.device) -> int | None:
    """Return the most memory that CUDA held during a step; None: it is not CUDA, or too much.

    Args:
        step: What is run, once.
        batch: The real batch size.
        device: Where.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        step(batch)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return None
    return int(torch.cuda.max_memory_allocated(device))
