from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from kdci.deconfounding.additive_attention import additive_scores


def make_inputs(
    batch: int = 5, prototypes: int = 3, width: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    shapes = (batch, width), (prototypes, width), (width,)
    query, key, weight = (
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    )
    return query, key, weight


def written_out(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
    """Return the formula for autograd to differentiate, one score at a time."""
    rows = [[(weight * torch.tanh(q + k)).sum() for k in key] for q in query]
    return torch.stack([torch.stack(row) for row in rows])


def gradients(
    scores: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(scores(*inputs), inputs, upstream)


def saved_bytes(scores: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> dict[int, int]:
    """Return the bytes of each storage that is kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = scores(*inputs)
    assert result.requires_grad
    return kept


@pytest.mark.parametrize("shape", [(5, 3, 4), (1, 7, 2), (6, 1, 1)])
class TestScores:
    def test_equal_the_formula(self, shape: tuple[int, int, int]) -> None:
        query, key, weight = (value.detach() for value in make_inputs(*shape))
        got = additive_scores(query, key, weight)
        assert got.shape == shape[:2]
        for b, q in enumerate(query.tolist()):
            for n, k in enumerate(key.tolist()):
                terms = zip(weight.tolist(), q, k, strict=True)
                expected = sum(w * math.tanh(x + y) for w, x, y in terms)
                assert float(got[b, n]) == pytest.approx(expected)

    def test_gradients_equal_those_of_plain_autograd(self, shape: tuple[int, int, int]) -> None:
        inputs = make_inputs(*shape)
        upstream = torch.randn(shape[:2], generator=torch.Generator().manual_seed(9)).double()
        got = gradients(additive_scores, inputs, upstream)
        expected = gradients(written_out, inputs, upstream)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
            assert bool(one.any())

    def test_gradients_equal_finite_differences(self, shape: tuple[int, int, int]) -> None:
        assert torch.autograd.gradcheck(additive_scores, make_inputs(*shape))


def test_single_precision_is_as_good_as_the_plain_formula() -> None:
    inputs = make_inputs(16, 10, 8, torch.float32)
    upstream = torch.ones(16, 10)
    exact = gradients(written_out, tuple(value.double() for value in inputs), upstream.double())
    for one, other in zip(gradients(additive_scores, inputs, upstream), exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


def test_a_batch_too_large_for_one_block_is_the_same() -> None:
    inputs = make_inputs(301, 30, 32)
    upstream = torch.randn(301, 30, generator=torch.Generator().manual_seed(9)).double()

    def plain(query: Tensor, key: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bna,a->bn", (query[:, None] + key).tanh(), weight)

    torch.testing.assert_close(additive_scores(*inputs), plain(*inputs), atol=1e-12, rtol=1e-12)
    got, expected = (gradients(scores, inputs, upstream) for scores in (additive_scores, plain))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_only_the_inputs_are_saved_for_the_backward_pass() -> None:
    """And nothing of size (B, N, A), which the plain formula keeps."""
    query, key, weight = make_inputs(32, 20, 16, torch.float32)
    kept = saved_bytes(additive_scores, (query, key, weight))
    assert kept == {
        value.untyped_storage().data_ptr(): 4 * value.numel() for value in (query, key, weight)
    }
    plain = saved_bytes(lambda q, k, w: (q[:, None] + k).tanh() @ w, (query, key, weight))
    assert sum(plain.values()) >= 4 * 32 * 20 * 16 > 5 * sum(kept.values())


def test_the_inputs_stay_as_they_were_and_backward_may_be_repeated() -> None:
    inputs = make_inputs()
    before = [value.detach().clone() for value in inputs]
    scores = additive_scores(*inputs)
    total = scores.sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    second = torch.autograd.grad(total, inputs)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    for value, old in zip(inputs, before, strict=True):
        assert torch.equal(value, old)


def test_inputs_without_a_gradient_get_none() -> None:
    query, key, weight = make_inputs()
    key, weight = key.detach(), weight.detach()
    additive_scores(query, key, weight).sum().backward()
    assert query.grad is not None and key.grad is None and weight.grad is None
    assert not additive_scores(query.detach(), key, weight).requires_grad


def test_large_scores_saturate_and_stay_finite() -> None:
    query, key, weight = make_inputs()
    scores = additive_scores(1e6 * query, 1e6 * key, weight)
    assert bool(scores.isfinite().all()) and bool((scores.abs() <= weight.abs().sum() + 1e-9).all())
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(scores.sum(), (query, key)))


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_refused_and_not_wrong(power: int) -> None:
    query, key, weight = make_inputs()
    total = additive_scores(query, key, weight).sum()
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(total**power, query, create_graph=True)
        first.sum().backward()


def test_projections_made_inside_are_those_made_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (6, 5), (4, 3), (7,), (7, 5), (7, 3)
    logits, prototypes, weight, w_q, w_k = inputs = tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )
    inside = additive_scores(logits, prototypes, weight, w_q_AK=w_q, w_k_AD=w_k)
    outside = additive_scores(logits @ w_q.T, prototypes @ w_k.T, weight)
    torch.testing.assert_close(inside, outside, atol=1e-12, rtol=1e-12)
    upstream = torch.randn(6, 4, generator=generator).double()
    for one, other in zip(
        torch.autograd.grad(inside, inputs, upstream),
        torch.autograd.grad(outside, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_projections_made_inside_are_not_saved() -> None:
    logits, prototypes, weight = torch.randn(32, 5), torch.randn(20, 3), torch.randn(16)
    w_q, w_k = torch.randn(16, 5, requires_grad=True), torch.randn(16, 3, requires_grad=True)

    def scores(*inputs: Tensor) -> Tensor:
        return additive_scores(*inputs, w_q_AK=w_q, w_k_AD=w_k)

    kept = saved_bytes(scores, (logits, prototypes, weight))
    inputs = (logits, prototypes, weight, w_q, w_k)
    assert sum(kept.values()) == 4 * sum(value.numel() for value in inputs)


def test_autocast_around_it_changes_nothing() -> None:
    """Neither the scores nor their gradients: a user's loop may have it around the module."""
    inputs = make_inputs(dtype=torch.float32)
    upstream = torch.ones(5, 3)
    expected = gradients(additive_scores, inputs, upstream)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = additive_scores(*inputs)
        within = gradients(additive_scores, inputs, upstream)
    assert torch.equal(scores, additive_scores(*inputs))
    for got in (torch.autograd.grad(scores, inputs, upstream), within):
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
