"""The optimisers compute what torch's own compute, and leave the compiler out of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kdci.training import optimizers


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

    own = walk(optimizers)
    options |= {"fused": True} if name == "Adam" else {}
    torchs = walk(torch.optim)
    assert torch.equal(own, torchs)
    assert not torch.equal(own, start)


@pytest.mark.parametrize("weights_last", [True, False])
def test_memory_formats_of_gradients_and_moments_do_not_matter(weights_last: bool) -> None:
    """Torch's fused kernel mixes up the elements where they differ."""
    random = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(7, 4, 3, 3, 3, generator=random)
    formats = {True: torch.channels_last, False: torch.contiguous_format}
    own = torch.nn.Parameter(start.clone(memory_format=formats[weights_last]))
    plain = torch.nn.Parameter(start.clone())
    optimizer, reference = optimizers.Adam([own], lr=0.1), torch.optim.Adam([plain], lr=0.1)
    for step, gradient in enumerate(gradients):
        plain.grad = gradient.clone()
        own.grad = gradient.clone(memory_format=formats[not weights_last])
        if step == 3:
            moments = optimizers.Moments(optimizer).state_dict()
            for value in moments[0].values():
                if value.dim() == 4:
                    value.data = value.clone(memory_format=formats[not weights_last])
            optimizer = optimizers.Adam([own], lr=0.1)
            optimizers.Moments(optimizer).load_state_dict(moments)
        optimizer.step()
        reference.step()
        torch.testing.assert_close(own.data, plain.data, rtol=1e-5, atol=1e-6)


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
from kdci.training.optimizers import SGD, Adam
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
