"""What resuming needs of something that is made of parts: the states of these, by their names."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

State = dict[str, Any]
"""Nested dicts and lists of tensors, numbers, strings and None; see ``kdci.store.checkpoints``."""


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors that were saved of the same network, by this project.

    A state dict of torch carries the version of each module that wrote it, which files of plain
    tensors do not keep. Some networks, MNASNet among them, refuse to load without it.

    Args:
        module: The network; its parameters and buffers are overwritten.
        tensors: By the names of ``module.state_dict()``.

    Raises:
        RuntimeError: A tensor is missing, left over, or of another shape.
    """
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    module.load_state_dict(state)


class Stateful:
    """Something that goes on from the states of its parts.

    Attributes:
        kept: Names of the attributes that a state holds, under these names without a leading
            underscore: networks, random streams and others with a state of their own, dicts of
            such, and plain values. A part that is None has no state.
    """

    kept: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> State:
        """Return all that resuming needs; the state of a network is a copy."""
        return {name.lstrip("_"): _state_of(getattr(self, name)) for name in self.kept}

    def load_state_dict(self, state: State) -> None:
        """Continue from ``state``."""
        for name in self.kept:
            setattr(self, name, _resumed(getattr(self, name), state[name.lstrip("_")]))


def _state_of(part: Any) -> Any:
    if isinstance(part, nn.Module):
        return {**copy.deepcopy(part.state_dict())}
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, dict):
        return {name: _state_of(one) for name, one in part.items()}
    return part.state_dict() if hasattr(part, "state_dict") else part


def _resumed(part: Any, state: Any) -> Any:
    """Return the part as it was, or the value that takes its place."""
    if isinstance(part, dict):
        return {name: _resumed(part.get(name), one) for name, one in state.items()}
    if isinstance(part, nn.Module):
        load_state(part, state)
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    else:
        return state
    return part
