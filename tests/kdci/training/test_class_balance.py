from __future__ import annotations

import math

import pytest
import torch

from kdci.training.losses import class_balance


def test_even_and_one_sided_batches_by_hand() -> None:
    sure = 50.0 * torch.eye(4)
    assert class_balance(sure).item() == pytest.approx(-math.log(4))
    assert class_balance(sure, base=2).item() == pytest.approx(-2.0)
    assert class_balance(sure, base=10).item() == pytest.approx(-math.log10(4))
    assert class_balance(sure[:1].repeat(3, 1)).item() == pytest.approx(0.0, abs=1e-6)
    # Half of one class, a quarter of two others: -1/2 - 2/4 - 2/4 bits.
    assert class_balance(sure[[0, 0, 1, 2]], base=2).item() == pytest.approx(-1.5, abs=1e-5)


def test_equals_a_naive_loop() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = 0.0
    for column in range(3):
        share = sum(float(torch.softmax(row, 0)[column]) for row in logits) / 5
        expected += share * math.log(share)
    assert class_balance(logits).item() == pytest.approx(expected, rel=1e-6)


def test_its_gradient_moves_a_batch_towards_the_missing_class() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], requires_grad=True)
    class_balance(logits).backward()
    assert logits.grad is not None
    assert bool((logits.grad[:, 0] > 0).all()) and bool((logits.grad[:, 1:] < 0).all())


def test_a_class_without_a_trace_stays_finite() -> None:
    logits = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = class_balance(logits)
    loss.backward()
    assert bool(loss.isfinite()) and logits.grad is not None
    assert bool(logits.grad.isfinite().all())
