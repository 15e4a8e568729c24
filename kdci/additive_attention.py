"""Scores of additive attention that keep (B, A) + (N, A) numbers for the backward pass.

KDCI's lambda scores every pair of a student prediction and a prototype:
score_bn = sum_a w_a tanh(q_ba + k_na). Autograd would save the tanh of every pair, (B, N, A):
6.5 MB at batch 256, N = 100 and width 64. Here the backward pass computes them again, and both
passes go over the batch in blocks that stay in a processor's cache.

With s = sigmoid(2x), tanh(x) = 2s - 1 and its derivative is 4 s (1 - s). On a CPU torch's sigmoid
takes a tenth of its tanh's time, and comes within 2e-7, float32 rounding, of it.
"""

# B = batch, b = rows of a block, N = prototypes, A = attention width

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
    def forward(ctx: Any, query_BA: Tensor, key_NA: Tensor, weight_A: Tensor) -> Tensor:
        ctx.save_for_backward(query_BA, key_NA, weight_A)
        twice_query_BA, twice_key_NA, twice_weight_A = 2 * query_BA, 2 * key_NA, 2 * weight_A
        blocks_bN = [
            _sigmoids(twice_query_bA, twice_key_NA) @ twice_weight_A
            for twice_query_bA in torch.split(twice_query_BA, _block_rows(key_NA))
        ]
        return torch.cat(blocks_bN).sub_(weight_A.sum())

    @staticmethod
    def backward(ctx: Any, gradient_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BA, key_NA, weight_A = ctx.saved_tensors
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


def additive_scores(query_BA: Tensor, key_NA: Tensor, weight_A: Tensor) -> Tensor:
    """Return score_bn = sum_a w_a tanh(q_ba + k_na).

    Args:
        query_BA: W_q f_S of each sample; (B, A).
        key_NA: W_k z_i; (N, A).
        weight_A: W_t; (A,).

    Returns:
        (B, N), in the type of W_t, under autocast too. First derivatives only.
    """
    # The loop may be the caller's, with autocast around it: its backward pass would mix types.
    with torch.autocast(query_BA.device.type, enabled=False):
        scores_BN: Tensor = _Scores.apply(
            query_BA.to(weight_A.dtype), key_NA.to(weight_A.dtype), weight_A
        )
    return scores_BN
