"""Scores of additive attention that keep nothing but their inputs for the backward pass.

KDCI's lambda scores every pair of a student prediction and a prototype:
score_bn = sum_a w_a tanh(q_ba + k_na). Autograd would save the tanh of every pair, (B, N, A):
6.5 MB at batch 256, N = 100 and width 64. Here the backward pass computes them again, and both
passes go over the batch in blocks that stay in a processor's cache.

With s = sigmoid(2x), tanh(x) = 2s - 1 and its derivative is 4 s (1 - s). On a CPU torch's sigmoid
takes a tenth of its tanh's time, and comes within 2e-7, float32 rounding, of it.
"""

# B = batch, b = rows of a block, N = prototypes, A = attention width
# K = classes, D = dimension of a prototype

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CPU_BLOCK = 2**18
"""Numbers in a block: 1 MB, a core's second-level cache."""

_DEVICE_BLOCK = 2**24
"""The same on an accelerator, where many small kernels cost more than memory does: 64 MB."""


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        weight_A: Tensor,
        w_q_AK: Tensor | None,
        w_k_AD: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, weight_A, w_q_AK, w_k_AD)
        twice_query_BA, twice_key_NA = 2 * _projected(query, w_q_AK), 2 * _projected(key, w_k_AD)
        twice_weight_A = 2 * weight_A
        blocks_bN = [
            _sigmoids(twice_query_bA, twice_key_NA) @ twice_weight_A
            for twice_query_bA in torch.split(twice_query_BA, _block_rows(twice_key_NA))
        ]
        return torch.cat(blocks_bN).sub_(weight_A.sum())

    @staticmethod
    def backward(ctx: Any, gradient_BN: Tensor) -> tuple[Tensor | None, ...]:
        query, key, weight_A, w_q_AK, w_k_AD = ctx.saved_tensors
        with _full_precision(gradient_BN):
            query_gradient_BA, key_gradient_NA, weight_gradient_A = _gradients(
                _projected(query, w_q_AK), _projected(key, w_k_AD), weight_A, gradient_BN
            )
            query_gradient, w_q_gradient_AK = _gradients_before(query_gradient_BA, query, w_q_AK)
            key_gradient, w_k_gradient_AD = _gradients_before(key_gradient_NA, key, w_k_AD)
        return query_gradient, key_gradient, weight_gradient_A, w_q_gradient_AK, w_k_gradient_AD


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Return what turns autocast off: the loop around may have it on, in one pass or in both."""
    return torch.autocast(tensor.device.type, enabled=False)


def _projected(rows: Tensor, matrix: Tensor | None) -> Tensor:
    return rows if matrix is None else rows @ matrix.T


def _gradients_before(
    gradient_XA: Tensor, rows: Tensor, matrix: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a projection's input and of its matrix."""
    if matrix is None:
        return gradient_XA, None
    return gradient_XA @ matrix, gradient_XA.T @ rows


def _gradients(
    query_BA: Tensor, key_NA: Tensor, weight_A: Tensor, gradient_BN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and w."""
    twice_query_BA, twice_key_NA = 2 * query_BA, 2 * key_NA
    query_sums_bA = []
    key_sum_NA, sigmoid_sum_A = torch.zeros_like(key_NA), torch.zeros_like(weight_A)
    rows = _block_rows(key_NA)
    for twice_query_bA, gradient_bN in zip(
        torch.split(twice_query_BA, rows), torch.split(gradient_BN, rows), strict=True
    ):
        s_bNA = _sigmoids(twice_query_bA, twice_key_NA)
        sigmoid_sum_A.addmv_(s_bNA.flatten(0, 1).T, gradient_bN.flatten())
        slope_bNA = torch.addcmul(s_bNA, s_bNA, s_bNA, value=-1, out=s_bNA)  # s (1 - s)
        slope_bNA.mul_(gradient_bN[:, :, None])
        query_sums_bA.append(slope_bNA.sum(dim=1))
        key_sum_NA.add_(slope_bNA.sum(dim=0))
    # d score / d w = 2 s - 1; d score / d (q + k) = 4 w s (1 - s).
    weight_gradient_A = sigmoid_sum_A.mul_(2).sub_(gradient_BN.sum())
    four_weights_A = 4 * weight_A
    query_gradient_BA = torch.cat(query_sums_bA).mul_(four_weights_A)
    return query_gradient_BA, key_sum_NA.mul_(four_weights_A), weight_gradient_A


def _block_rows(key_NA: Tensor) -> int:
    """Return how many rows of the batch are worked on at a time."""
    numbers = _CPU_BLOCK if key_NA.device.type == "cpu" else _DEVICE_BLOCK
    return max(1, numbers // key_NA.numel())


def _sigmoids(twice_query_bA: Tensor, twice_key_NA: Tensor) -> Tensor:
    return (twice_query_bA[:, None, :] + twice_key_NA[None, :, :]).sigmoid_()


def additive_scores(
    query_BA: Tensor,
    key_NA: Tensor,
    weight_A: Tensor,
    *,
    w_q_AK: Tensor | None = None,
    w_k_AD: Tensor | None = None,
) -> Tensor:
    """Return score_bn = sum_a w_a tanh(q_ba + k_na).

    Args:
        query_BA: W_q f_S of each sample; (B, A). With ``w_q_AK``, f_S itself; (B, K).
        key_NA: W_k z_i; (N, A). With ``w_k_AD``, z_i itself; (N, D).
        weight_A: W_t; (A,).
        w_q_AK: W_q, where the projection is to be made here and again in the backward pass,
            so that f_S is kept and not W_q f_S; (A, K).
        w_k_AD: W_k, likewise; (A, D).

    Returns:
        (B, N), in the type of W_t, under autocast too. First derivatives only.
    """
    query, key = query_BA.to(weight_A.dtype), key_NA.to(weight_A.dtype)
    with _full_precision(query):
        scores_BN: Tensor = _Scores.apply(query, key, weight_A, w_q_AK, w_k_AD)
    return scores_BN
