from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.synthesis.feature_memory import FeatureMemory
from kdci.synthesis.instance_discrimination import InstanceDiscrimination, ProjectionHead


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(*, size: int = 12, num_negatives: int = 5) -> InstanceDiscrimination:
    torch.manual_seed(3)
    return InstanceDiscrimination(
        ProjectionHead(6, 4),
        FeatureMemory(size, 6),
        learning_rate=0.05,
        temperature=0.2,
        num_negatives=num_negatives,
    )


def features(num: int, seed: int) -> Tensor:
    return torch.randn(num, 6, generator=seeded(seed))


def naive_loss(
    term: InstanceDiscrimination, local: Tensor, global_: Tensor, negatives: Tensor
) -> Tensor:
    """Row by row, the loss of `local` and `global_` against themselves and `negatives`."""
    head = term.head
    queries = [head(row[None])[0] for row in [*local, *negatives[:, 0]]]
    keys = [head(row[None])[0].detach() for row in [*global_, *negatives[:, 1]]]
    costs = []
    for index, query in enumerate(queries):
        scores = torch.stack([query.dot(key) / 0.2 for key in keys])
        costs.append(F.cross_entropy(scores[None], torch.tensor([index])))
    current, rest = torch.stack(costs[: len(local)]), costs[len(local) :]
    return current.mean() + torch.stack(rest).mean() if rest else current.mean()


@pytest.mark.parametrize("num_before", [0, 3, 12])
def test_loss_and_gradients_equal_a_loop(num_before: int) -> None:
    term = make()
    if num_before:
        term.remember(features(num_before, 5), features(num_before, 6))
    local, global_ = features(4, 1).requires_grad_(), features(4, 2).requires_grad_()
    negatives = term.memory.draw(5, seeded(9))
    assert len(negatives) == min(num_before, 5)
    leaves = [local, *term.head.parameters()]
    got = term.loss(local, global_, seeded(9))
    expected = naive_loss(term, local, global_.detach(), negatives)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(got, [*leaves, global_], allow_unused=True)
    assert gradients[-1] is None  # nothing reaches an image through its global view
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=False):
        torch.testing.assert_close(one, other)
        assert bool((one != 0).any())


def test_memory_gets_no_gradient_and_keeps_raw_features() -> None:
    term = make()
    local, global_ = features(4, 1).requires_grad_(), features(4, 2).requires_grad_()
    term.remember(2 * local, 3 * global_)
    rows = term.memory.rows
    assert not rows.requires_grad
    assert torch.equal(rows, torch.stack([2 * local, 3 * global_], dim=1).detach())
    term.loss(features(4, 3), features(4, 4), seeded()).backward()
    assert local.grad is None and torch.equal(term.memory.rows, rows)


def test_head_learns_and_forgets_its_gradients() -> None:
    term = make()
    local = features(8, 1)
    global_ = local + 0.3 * features(8, 2)
    before = copy.deepcopy(term.head.state_dict())
    term.learn()  # without gradients nothing moves
    assert all(torch.equal(value, before[name]) for name, value in term.head.state_dict().items())
    losses = []
    for step in range(30):
        loss = term.loss(local, global_, seeded(step))
        loss.backward()
        if step == 0:
            weights = {name: w.detach().clone() for name, w in term.head.named_parameters()}
            signs = {name: w.grad.sign() for name, w in term.head.named_parameters()}
        term.learn()
        if step == 0:
            # Adam's first step has the length of its rate, against the gradient.
            for name, weight in term.head.named_parameters():
                expected = weights[name] - 0.05 * signs[name]
                torch.testing.assert_close(weight.detach(), expected, atol=1e-3, rtol=0)
        assert all(weight.grad is None for weight in term.head.parameters())
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_state_continues_and_shares_nothing() -> None:
    def go_on(term: InstanceDiscrimination, seed: int) -> float:
        loss = term.loss(features(4, seed), features(4, seed + 1), seeded(seed))
        loss.backward()
        term.learn()
        term.remember(features(4, seed), features(4, seed + 1))
        return float(loss.detach())

    whole = make()
    for seed in (10, 20):
        go_on(whole, seed)
    state = whole.state_dict()
    frozen = copy.deepcopy(state)
    resumed = make()
    go_on(resumed, 77)
    resumed.load_state_dict(state)
    assert [go_on(whole, s) for s in (30, 40)] == [go_on(resumed, s) for s in (30, 40)]
    for name, value in state["head"].items():
        assert torch.equal(value, frozen["head"][name])
    assert torch.equal(state["memory"]["rows"], frozen["memory"]["rows"])
    for index, moments in state["moments"].items():
        assert all(torch.equal(value, frozen["moments"][index][k]) for k, value in moments.items())
        assert float(moments["step"]) == 2.0
