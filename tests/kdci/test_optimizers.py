"""The optimisers compute what torch's own compute, and leave the compiler out of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kdci import optimizers


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}),
        ("Adam", {"betas": (0.5, 0.999)}),
    ],
)
def test_steps_equal_torch_bit_for_bit_across_a_reload(name: str, options: dict) -> None:
    start = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    gradients = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(1))

    def walk(module: object) -> torch.Tensor:
        weight = torch.nn.Parameter(start.clone())
        optimizer = getattr(module, name)([weight], lr=0.1, **options)
        for step, gradient in enumerate(gradients):
            optimizer.zero_grad()
            weight.grad = gradient.clone()
            optimizer.step()
            if step == 2:
                state = optimizer.state_dict()
                optimizer = getattr(module, name)([weight], lr=0.7, **options)
                optimizer.load_state_dict(state)
        return weight.detach()

    own, torchs = walk(optimizers), walk(torch.optim)
    assert torch.equal(own, torchs)
    assert not torch.equal(own, start)


def test_a_step_builds_no_graph() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = optimizers.SGD([weight], lr=0.1)
    (weight**2).sum().backward()
    optimizer.step()
    assert weight.is_leaf
    assert weight.requires_grad
    assert torch.is_grad_enabled()


def test_the_compiler_stays_out_of_the_process() -> None:
    script = """
import sys
import torch
from kdci.optimizers import SGD, Adam
weight = torch.nn.Parameter(torch.ones(2))
for kind in (SGD, Adam):
    optimizer = kind([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
