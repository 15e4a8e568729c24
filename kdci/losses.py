"""Losses that several methods share: pure functions of tensors.

Shape legend: B batch, K classes, C channels of a feature map, L BatchNorm layers.
All divergences and entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_label_kl(
    student_logits_BK: Tensor, teacher_logits_BK: Tensor, temperature: float
) -> Tensor:
    """Return T^2 KL(p_T || p_S), both softened by T, summed over classes, mean over the batch.

    The factor T^2 keeps the gradient's size about the same at every temperature
    (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K); no gradient flows into them.
        temperature: T > 0; dimensionless.
    """
    student = F.log_softmax(student_logits_BK / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits_BK.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def one_hot_costs(logits_BK: Tensor) -> Tensor:
    """Return -log max softmax for every row: cross-entropy to the row's own argmax, (B,).

    The mean is DAFL's one-hot loss (Chen et al., ICCV 2019); the value itself is DFND's
    selection score (Chen et al., CVPR 2021).
    """
    return -F.log_softmax(logits_BK, dim=1).amax(dim=1)


def disagreement(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """Return the decision-adversarial loss: the lower, the more the two nets disagree.

    -mean_i 1[argmax S_i = argmax T_i] KL(p_T,i || p_S,i): only images that both put in the
    same class count, so that an image is never pushed over the teacher's decision border
    for nothing. Gradient flows through both (CMI: Fang et al., IJCAI 2021).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K).
    """
    agree_B = student_logits_BK.argmax(dim=1) == teacher_logits_BK.argmax(dim=1)
    divergence_B = F.kl_div(
        F.log_softmax(student_logits_BK, dim=1),
        F.log_softmax(teacher_logits_BK, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    return -(divergence_B * agree_B).mean()


def bn_statistics_loss(
    means_LC: Sequence[Tensor],
    variances_LC: Sequence[Tensor],
    running_means_LC: Sequence[Tensor],
    running_variances_LC: Sequence[Tensor],
) -> Tensor:
    """Return R_bn, the distance of batch statistics from those of the training data.

    Sum over layers of ||running mean - mean||_2 + ||running variance - variance||_2, norms
    not squared (DeepInversion: Yin et al., CVPR 2020; CMI and FastDFKD use the same form).

    Args:
        means_LC: Batch mean of each layer's input, L tensors of shape (C,).
        variances_LC: Biased batch variance of each layer's input.
        running_means_LC: Running mean of each layer.
        running_variances_LC: Running variance of each layer.
    """
    distances = [
        torch.linalg.vector_norm(running - current)
        for running, current in [
            *zip(running_means_LC, means_LC, strict=True),
            *zip(running_variances_LC, variances_LC, strict=True),
        ]
    ]
    return torch.stack(distances).sum()


def blend(
    current_LC: Sequence[Tensor], remembered_LC: Sequence[Tensor] | None, momentum: float
) -> list[Tensor]:
    """Return (1 - m) current + m remembered, or the current values where none are remembered.

    FastDFKD compares such blends with the running statistics, which scales the gradient by
    1 - m: hence its tenfold weight on R_bn (FastDFKD: Fang et al., AAAI 2022).
    """
    if remembered_LC is None:
        return list(current_LC)
    pairs = zip(current_LC, remembered_LC, strict=True)
    return [(1 - momentum) * current + momentum * remembered for current, remembered in pairs]
