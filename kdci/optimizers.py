"""torch's optimisers without the compiler they import.

The first call of any ``torch.optim`` method imports ``torch._dynamo`` and sympy with it, only to
tell the compiler to leave the method alone: one to two seconds in every process, which is more
than many stages compute. Nothing here compiles, so the classes below call what torch wrapped.
The arithmetic is torch's own.
"""

from __future__ import annotations

import inspect

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
