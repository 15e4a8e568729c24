from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.training.losses import contrastive_loss


def units(rows: int, seed: int) -> Tensor:
    values = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=1)


def naive(queries: Tensor, keys: Tensor, temperature: float, num_current: int) -> float:
    costs = []
    for i, query in enumerate(queries.tolist()):
        scores = [
            math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / temperature)
            for key in keys.tolist()
        ]
        costs.append(-math.log(scores[i] / sum(scores)))
    current, rest = costs[:num_current], costs[num_current:]
    mean = sum(current) / len(current)
    return mean + sum(rest) / len(rest) if rest else mean


@pytest.mark.parametrize("num_current", [1, 3, 9, 10])
@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_equals_a_loop_over_rows(num_current: int, temperature: float) -> None:
    queries, keys = units(10, 0), units(10, 1)
    got = contrastive_loss(queries, keys, temperature=temperature, num_current=num_current)
    assert float(got) == pytest.approx(naive(queries, keys, temperature, num_current), rel=1e-5)


def test_value_by_hand() -> None:
    axes = torch.eye(3)
    # Each row: own similarity 1 / 0.5 = 2, two others 0.
    each = math.log(math.exp(2.0) + 2.0) - 2.0
    alone = contrastive_loss(axes, axes, temperature=0.5, num_current=3)
    assert float(alone) == pytest.approx(each, rel=1e-6)
    # Two means are added, whatever their number of rows.
    apart = contrastive_loss(axes, axes, temperature=0.5, num_current=2)
    assert float(apart) == pytest.approx(2 * each, rel=1e-6)
    # Alike rows can not be told apart: the cost is log 3.
    alike = contrastive_loss(
        axes[:1].expand(3, 3), axes[:1].expand(3, 3), temperature=0.5, num_current=3
    )
    assert float(alike) == pytest.approx(math.log(3.0), rel=1e-6)


def test_gradient_flows_to_the_queries_alone() -> None:
    queries, keys = units(6, 0).requires_grad_(), units(6, 1).requires_grad_()
    contrastive_loss(queries, keys, temperature=0.2, num_current=4).backward()
    assert queries.grad is not None and bool((queries.grad.abs().sum(dim=1) > 0).all())
    assert keys.grad is None
    # Down the gradient, each query comes closer to its own key.
    nearer = F.normalize(queries.detach() - 0.01 * queries.grad, dim=1)
    before, after = ((q * keys).sum(dim=1).mean() for q in (queries, nearer))
    assert float(after.detach()) > float(before.detach())
