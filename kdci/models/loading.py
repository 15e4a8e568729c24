"""Plain tensors by name, put into a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


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
