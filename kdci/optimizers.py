"""torch's optimisers without the compiler they import.

The first call of any ``torch.optim`` method imports ``torch._dynamo`` and sympy with it, only to
tell the compiler to leave the method alone: one to two seconds in every process, which is more
than many stages compute. Nothing here compiles, so the classes below call what torch wrapped.
The arithmetic is torch's own.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch


def _mark_as_not_compiled(*methods: str) -> None:
    # `torch._disable_dynamo` looks for this mark before it imports the compiler.
    for name in methods:
        function = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        function.__dict__.setdefault("__dynamo_disable", function)


_mark_as_not_compiled("add_param_group", "load_state_dict", "state_dict", "zero_grad")


class SGD(torch.optim.SGD):
    """``torch.optim.SGD``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def moments_of(optimizer: torch.optim.Optimizer) -> dict[int, Any]:
    """Return a copy of what an optimiser remembers of its parameters, by their number."""
    moments: dict[int, Any] = copy.deepcopy(optimizer.state_dict()["state"])
    return moments


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[int, Any]) -> None:
    """Restore what ``moments_of`` returned; rates and other options stay as they are."""
    # The optimiser works in place on what it loads, and the caller's state is not ours to change.
    state = copy.deepcopy(moments)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
