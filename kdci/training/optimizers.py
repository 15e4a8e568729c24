"""torch's optimisers without the compiler they import.

The first call of any ``torch.optim`` method imports ``torch._dynamo`` and sympy with it, only to
tell the compiler to leave the method alone: one to two seconds in every process, which is more
than many stages compute. Nothing here compiles, so the classes below call what torch wrapped.
The arithmetic is torch's own. SGD stays as it is: fused it was no faster, and it is a thousandth
of a step.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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
    """``torch.optim.Adam`` in one pass over weights and moments, which is 2.5 times faster.

    Args:
        params: As torch's.
        options: As torch's, but ``fused``, which is set.
    """

    _plain_step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, fused=True, **options)

    def step(self, closure: Any = None) -> Any:
        """Take a step; see torch."""
        self._align()
        return self._plain_step(closure)

    def _align(self) -> None:
        """Lay out gradients and moments in memory as their weights are.

        The fused kernel walks them by address and not by stride: of a channels-last weight with
        a contiguous gradient it would mix up the elements, and say nothing. Gradients that
        ``torch.autograd.grad`` returned and moments out of a file may be laid out so.
        """
        for weight in (one for group in self.param_groups for one in group["params"]):
            if weight.grad is not None:
                weight.grad = _laid_out_as(weight, weight.grad)
            state = self.state.get(weight, {})
            for name, value in state.items():
                if value.shape == weight.shape:
                    state[name] = _laid_out_as(weight, value)


def _laid_out_as(weight: Tensor, tensor: Tensor) -> Tensor:
    if tensor.stride() == weight.stride():
        return tensor
    return torch.empty_like(weight).copy_(tensor)


def set_gradients(loss: Tensor, leaves: Sequence[Tensor]) -> None:
    """Set the gradient of each leaf, replacing what it had; no other leaf receives any.

    What only other leaves' gradients would need is not computed.

    Args:
        loss: A scalar that depends on every leaf.
        leaves: Parameters, or other tensors that require gradient.
    """
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        leaf.grad = gradient


class Moments:
    """What an optimiser remembers of its parameters; its rates and other options are left alone."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[int, Any]:
        """Return a copy of the moments, by the number of the parameter."""
        moments: dict[int, Any] = copy.deepcopy(self._optimizer.state_dict()["state"])
        return moments

    def load_state_dict(self, moments: dict[int, Any]) -> None:
        """Restore moments."""
        # The optimiser works in place on what it loads, and the caller's state is not ours.
        state = {**self._optimizer.state_dict(), "state": copy.deepcopy(moments)}
        self._optimizer.load_state_dict(state)
