"""What autograd keeps, against what is worked out by hand."""

from __future__ import annotations

import pytest
import torch
from kdci.probing.memory import (
    Activations,
    SavedBytes,
    measure_activations,
    measured_peak,
    state_bytes,
    weight_bytes,
)
from torch import Tensor, nn


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))


def test_two_layers_keep_their_input_and_what_is_between() -> None:
    """The ReLU keeps its result, which the second layer keeps too: one storage."""
    model = two_layers()

    def step(batch: int) -> None:
        model(torch.rand(batch, 8)).sum().backward()

    found = measure_activations(step, [model])
    assert found == Activations(per_image=(8 + 16) * 4, fixed=0.0)
    assert found.num_bytes(256) == 256 * 24 * 4


def test_frozen_layers_keep_less() -> None:
    """No weight asks for a gradient: the ReLU's sign is all that the way back needs."""
    model = two_layers().requires_grad_(False)

    def step(batch: int) -> None:
        images = torch.rand(batch, 8, requires_grad=True)
        torch.autograd.grad(model(images).sum(), [images])

    assert measure_activations(step, [model]).per_image == 16 * 4


def test_what_does_not_go_with_the_batch_is_kept_apart() -> None:
    table = torch.rand(10, 8)

    def step(batch: int) -> None:
        rows = torch.rand(batch, 8, requires_grad=True)
        torch.autograd.grad((rows @ table.T).sum(), [rows])

    assert measure_activations(step, []) == Activations(per_image=0.0, fixed=10 * 8 * 4)


def test_a_convolution_with_batch_norm() -> None:
    """The convolution keeps its input, the norm its own with two numbers a channel."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5))

    def step(batch: int) -> None:
        torch.autograd.grad(model(torch.rand(batch, 3, 8, 8)).sum(), list(model.parameters()))

    found = measure_activations(step, [model])
    assert found.per_image == (3 + 5) * 8 * 8 * 4
    assert found.fixed == 2 * 5 * 4


def test_graphs_one_after_the_other_count_once() -> None:
    """The peak, not the sum: what a graph let go of is free for the next."""
    saved = SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        for _ in range(3):
            value = torch.rand(100, requires_grad=True)
            torch.autograd.grad(value.square().sum(), [value])
            del value
    assert saved.peak == 100 * 4


def test_views_of_one_storage_count_once() -> None:
    whole = torch.rand(4, 5)
    saved = SavedBytes()
    held = [saved.pack(view) for view in (whole[0], whole[1], whole)]
    assert saved.peak == 20 * 4
    assert torch.equal(saved.unpack(held[1]), whole[1])
    held.clear()  # so there is room for a smaller one below the peak
    held.append(saved.pack(torch.rand(5)))
    assert saved.peak == 20 * 4


def test_gradients_come_out_the_same() -> None:
    model, images = two_layers(), torch.rand(3, 8)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))

    plain, saved = gradients(), SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        assert all(map(torch.equal, gradients(), plain))


def test_weights_and_files() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert weight_bytes(model) == (3 * 2 + 2 + 2 + 2) * 4
    assert state_bytes(model) == weight_bytes(model) + 2 * 2 * 4 + 8


def test_there_is_no_peak_without_cuda() -> None:
    assert measured_peak(lambda _: pytest.fail("ran"), 4, torch.device("cpu")) is None
