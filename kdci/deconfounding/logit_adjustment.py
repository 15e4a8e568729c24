"""Logit adjustment: a fixed log-prior on the student's logits while training.

Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. (10): training
on f(x) + tau log pi makes f(x) alone the balanced prediction. A plain remedy for a shift of
proportions, which KDCI is measured against.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def log_prior(classes_M: Tensor, num_classes: int) -> Tensor:
    """Return log pi of a pool's class proportions, each class counted once more than it occurs.

    The one count keeps a class that is absent from the pool finite.

    Args:
        classes_M: The teacher's class of each image; (M,) int64.
        num_classes: K.

    Returns:
        (K,), the logarithms of proportions that sum to 1.
    """
    counts_K = torch.bincount(classes_M, minlength=num_classes).double() + 1
    return (counts_K / counts_K.sum()).log().float()


class LogitAdjustment(nn.Module):
    """Adds tau log pi to the student's logits; takes the place of phi while training alone.

    Args:
        log_prior_K: log pi; (K,).
        tau: Strength; 1 is the value of the paper's theory.
    """

    log_prior_K: Tensor

    def __init__(self, log_prior_K: Tensor, *, tau: float = 1.0) -> None:
        super().__init__()
        self.tau = tau
        self.register_buffer("log_prior_K", log_prior_K.clone())

    def forward(self, student_logits_BK: Tensor) -> Tensor:
        """Return f_S(x) + tau log pi; (B, K)."""
        return student_logits_BK + self.tau * self.log_prior_K

    def describe(self, student_logits_BK: Tensor) -> dict[str, float]:
        """Return nothing: the module is the same in every step."""
        return {}
