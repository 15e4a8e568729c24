"""Scores of additive attention that keep (B, A) + (N, A) numbers for the backward pass, not (B, N, A).

KDCI's lambda scores every pair of a student prediction and a prototype:
score_bn = sum_a w_a tanh(q_ba + k_na). Autograd would save the tanh of every pair: 26 MB at batch 256,
N = 100 and width 64. Here the backward pass computes them again.
"""

# B = batch, N = prototypes, A = attention width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BA: Tensor, key_NA: Tensor, weight_A: Tensor) -> Tensor:
        ctx.save_for_backward(query_BA, key_NA, weight_A)
        return _activations(query_BA, key_NA) @ weight_A

    @staticmethod
    def backward(ctx: Any, gradient_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_BA, key_NA, weight_A = ctx.saved_tensors
        active_BNA = _activations(query_BA, key_NA)
        # d score / d w = tanh; d score / d (q + k) = w (1 - tanh^2), in the place of the tanh.
        weight_gradient_A = torch.einsum("bn,bna->a", gradient_BN, active_BNA)
        inner_BNA = active_BNA.square_().neg_().add_(1).mul_(gradient_BN[:, :, None])
        query_gradient_BA = inner_BNA.sum(dim=1) * weight_A
        key_gradient_NA = inner_BNA.sum(dim=0) * weight_A
        return query_gradient_BA, key_gradient_NA, weight_gradient_A


def _activations(query_BA: Tensor, key_NA: Tensor) -> Tensor:
    return (query_BA[:, None, :] + key_NA[None, :, :]).tanh_()


def additive_scores(query_BA: Tensor, key_NA: Tensor, weight_A: Tensor) -> Tensor:
    """Return score_bn = sum_a w_a tanh(q_ba + k_na).

    Args:
        query_BA: W_q f_S of each sample; (B, A).
        key_NA: W_k z_i; (N, A).
        weight_A: W_t; (A,).

    Returns:
        (B, N). First derivatives only.
    """
    scores_BN: Tensor = _Scores.apply(query_BA, key_NA, weight_A)
    return scores_BN
