"""Losses that several methods share: pure functions of tensors.

Shape legend: B batch, K classes, C channels of a feature map, L BatchNorm layers.
All divergences and entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of a loss's terms, each times the weight of its name."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


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


def activation_loss(features_BD: Tensor) -> Tensor:
    """Return -mean |f_T|, over batch and dimensions: real images excite a teacher more.

    Args:
        features_BD: The teacher's penultimate features, (B, D) (DAFL: Chen et al., ICCV 2019).
    """
    return -features_BD.abs().mean()


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


def competition(
    student_logits_BK: Tensor,
    teacher_logits_BK: Tensor,
    temperature: float,
    floor: float = 0.0,
) -> Tensor:
    """Return -JS(p_T, p_S), both softened by T: the lower, the further the nets are apart.

    JS = KL(p_T || M) / 2 + KL(p_S || M) / 2 with M = (p_T + p_S) / 2, mean over the batch, at
    most ln 2; gradient flows through both nets (Adaptive DeepInversion: Yin et al., CVPR 2020).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K).
        temperature: T > 0; dimensionless.
        floor: Probabilities, M's too, are clamped to [floor, 1 - floor] before they are
            compared; below 0.5. The authors' public code has 0.01, which silences each class
            that both nets give less: at 1000 classes, nearly all of them. 0: no clamp.
    """
    student = F.log_softmax(student_logits_BK / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits_BK / temperature, dim=1)
    middle = torch.logaddexp(student, teacher) - math.log(2)
    if floor > 0:
        bounds = math.log(floor), math.log1p(-floor)
        student, teacher, middle = (logs.clamp(*bounds) for logs in (student, teacher, middle))
    divergences = [
        F.kl_div(middle, logs, reduction="batchmean", log_target=True)
        for logs in (teacher, student)
    ]
    return -torch.stack(divergences).mean()


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


def contrastive_loss(
    queries_NP: Tensor, keys_NP: Tensor, *, temperature: float, num_current: int
) -> Tensor:
    """Return the loss of telling each row apart from all others: low if the rows are diverse.

    Cross-entropy of every query's similarities to all keys, divided by the temperature, with
    the query's own key as the class (CMI: Fang et al., IJCAI 2021). The rows of the current
    batch and those that come from a memory are averaged apart and the two means added, so a
    large memory does not outweigh the batch; without a memory it is the plain mean.

    Args:
        queries_NP: Unit vectors of one view of each image, (N, P).
        keys_NP: Unit vectors of the other view, in the same order; no gradient flows in.
        temperature: Above 0; dimensionless.
        num_current: How many of the rows, the first ones, are of the current batch; 1 to N.
    """
    similarities_NN = queries_NP @ keys_NP.detach().T / temperature
    own_N = torch.arange(len(queries_NP), device=queries_NP.device)
    costs_N = F.cross_entropy(similarities_NN, own_N, reduction="none")
    current_N, remembered_N = costs_N[:num_current], costs_N[num_current:]
    # The mean of no rows would be NaN.
    return current_N.mean() + remembered_N.mean() if len(remembered_N) else current_N.mean()


def class_balance(logits_BK: Tensor, base: float = math.e) -> Tensor:
    """Return sum_c p_c log p_c of the batch's mean prediction p: lowest where all classes are even.

    The information-entropy loss of DAFL (Chen et al., ICCV 2019), whose authors' code has base
    10, and the balance loss of MosaicKD (Fang et al., NeurIPS 2021), with base 2.

    Args:
        logits_BK: Teacher logits, (B, K).
        base: Of the logarithm; e for nats.
    """
    mean_K = F.softmax(logits_BK, dim=1).mean(dim=0)
    # A class that no image of the batch has a trace of would give 0 log 0.
    return (mean_K * (mean_K + 1e-8).log()).sum() / math.log(base)


def prediction_entropies(logits_BK: Tensor) -> Tensor:
    """Return the entropy of every row's softmax in nats, (B,).

    The mean over a generator's images is MosaicKD's label-space alignment, and the value itself
    its selection score (Fang et al., NeurIPS 2021). A probability that underflows to 0 adds 0:
    the logarithm is taken of the logits, not of the probability.
    """
    log_probabilities_BK = F.log_softmax(logits_BK, dim=1)
    return -(log_probabilities_BK.exp() * log_probabilities_BK).sum(dim=1)


def divergence(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """Return KL(p_T || p_S), mean over the batch; gradient flows through both nets.

    MosaicKD's generator seeks images where it is large, whether or not the two nets put them
    in the same class (Fang et al., NeurIPS 2021).

    Args:
        student_logits_BK: Student logits, (B, K).
        teacher_logits_BK: Teacher logits, (B, K).
    """
    return F.kl_div(
        F.log_softmax(student_logits_BK, dim=1),
        F.log_softmax(teacher_logits_BK, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def patch_loss(patch_logits_B1hw: Tensor, *, real: bool) -> Tensor:
    """Return the cross-entropy of calling every patch real, or made, if ``real`` is false.

    Summed over an image's patches, mean over the batch: P patches weigh P times as much as
    their mean would (MosaicKD: Fang et al., NeurIPS 2021).

    Args:
        patch_logits_B1hw: Logits of being real, one for each patch, (B, 1, h, w).
        real: What the patches are to be called.
    """
    labels_B1hw = torch.full_like(patch_logits_B1hw, float(real))
    total = F.binary_cross_entropy_with_logits(patch_logits_B1hw, labels_B1hw, reduction="sum")
    return total / len(patch_logits_B1hw)
