"""How far images are shifted from others, and predictions from the truth: measures of Z's effect.

A shift of quality is a Frechet distance between features, one of class proportions a total
variation or an entropy; what it does to a student is a marginal bias and a calibration error.
Whatever compares with real images belongs to an evaluation, never to distillation.
"""

# M = samples (of two sets: A and B), D = dimension of a feature, K = classes

from __future__ import annotations

import torch
from torch import Tensor

from kdci.errors import NumericError
from kdci.training.evaluation import class_proportions


def frechet_distance(features_a_MD: Tensor, features_b_MD: Tensor) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of features.

    ||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with unbiased covariances (Dowson and
    Landau, 1982; Heusel et al., NeurIPS 2017, who call it FID on an Inception network's
    features). Here the features are the teacher's penultimate ones, and reports say
    teacher-FID: its size depends on the network, it is no FID, and it can not be compared with
    one that was published, nor between two teachers. Like FID it is biased upwards for few
    samples, so only sets of the same size compare.

    With X = Q R the centred features over sqrt(M - 1), S = R^T R, and tr (S_a S_b)^(1/2) is the
    sum of the singular values of R_a R_b^T. No root of a matrix is taken, which rounding would
    make complex where a covariance has not full rank (M <= D).

    Args:
        features_a_MD: (M_a, D), at least two rows.
        features_b_MD: (M_b, D), at least two rows.

    Returns:
        The distance, 0 or more, in squared units of a feature.

    Raises:
        ValueError: The sets do not fit together, or one has fewer than two rows.
        NumericError: A feature is not finite.
    """
    shapes = tuple(features_a_MD.shape), tuple(features_b_MD.shape)
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"need two sets of at least two features of one dimension, got {shapes}")
    mean_a_D, factor_a_RD = _gaussian(features_a_MD)
    mean_b_D, factor_b_RD = _gaussian(features_b_MD)
    overlap = torch.linalg.svdvals(factor_a_RD @ factor_b_RD.T).sum()
    spread = factor_a_RD.square().sum() + factor_b_RD.square().sum()
    distance = (mean_a_D - mean_b_D).square().sum() + spread - 2 * overlap
    return max(float(distance), 0.0)


def _gaussian(features_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and a factor R of the covariance R^T R, at most D rows; float64."""
    rows_MD = features_MD.detach().double()
    if not bool(rows_MD.isfinite().all()):
        raise NumericError("teacher-FID", "the features hold NaN or infinity")
    mean_D = rows_MD.mean(dim=0)
    centred_MD = (rows_MD - mean_D) / (len(rows_MD) - 1) ** 0.5
    return mean_D, torch.linalg.qr(centred_MD, mode="r").R


def total_variation(proportions_K: Tensor, reference_K: Tensor | None = None) -> float:
    """Return the total-variation distance of two distributions: sum_k |p_k - r_k| / 2, 0 to 1.

    Args:
        proportions_K: p, summing to 1; (K,).
        reference_K: r, the same; None: uniform, and the distance is at most 1 - 1/K.

    Raises:
        ValueError: These are no distributions over the same classes.
    """
    p_K = _distribution(proportions_K)
    r_K = torch.full_like(p_K, 1 / len(p_K)) if reference_K is None else _distribution(reference_K)
    if len(p_K) != len(r_K):
        raise ValueError(f"distributions over {len(p_K)} and {len(r_K)} classes")
    return float((p_K - r_K).abs().sum() / 2)


def entropy(proportions_K: Tensor) -> float:
    """Return -sum_k p_k log p_k in nats: 0 if all is one class, log K if all classes are even.

    Args:
        proportions_K: p, summing to 1; (K,). An absent class adds 0.

    Raises:
        ValueError: It is no distribution.
    """
    return float(torch.special.entr(_distribution(proportions_K)).sum())


def _distribution(proportions_K: Tensor) -> Tensor:
    p_K = proportions_K.detach().double()
    if p_K.ndim != 1 or not bool((p_K >= 0).all()) or abs(float(p_K.sum()) - 1) > 1e-5:
        raise ValueError(
            "proportions must be 0 or more and sum to 1, these are "
            f"{tuple(p_K.shape)}, from {float(p_K.min()) if p_K.numel() else 0:.6f}, "
            f"and sum to {float(p_K.sum()):.6f}"
        )
    return p_K


def expected_calibration_error(logits_MK: Tensor, expected_M: Tensor, num_bins: int = 15) -> float:
    """Return the expected calibration error in percentage points, 0 to 100.

    Samples are binned by the probability of their predicted class, in equal widths (l, u]; the
    error is the mean over samples of |accuracy - mean confidence| of their bin (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, Eq. (3)).

    Args:
        logits_MK: (M, K).
        expected_M: The true class of each sample; (M,).
        num_bins: The paper's is 15.

    Raises:
        ValueError: There are no samples or no bins, or the shapes do not fit.
    """
    if num_bins < 1 or not len(logits_MK) or len(logits_MK) != len(expected_M):
        raise ValueError(
            f"need bins and a class for each of the samples, got {num_bins} bins, "
            f"{len(logits_MK)} samples and {len(expected_M)} classes"
        )
    confidence_M, predicted_M = logits_MK.detach().double().softmax(dim=1).max(dim=1)
    excess_M = (predicted_M == expected_M).double() - confidence_M
    bin_M = ((confidence_M * num_bins).ceil().long() - 1).clamp(0, num_bins - 1)
    excess_bins = torch.bincount(bin_M, weights=excess_M, minlength=num_bins)
    return 100 * float(excess_bins.abs().sum()) / len(logits_MK)


def marginal_bias(predicted_M: Tensor, expected_M: Tensor, num_classes: int) -> float:
    """Return how far the predicted class marginal is from the true one: total variation, 0 to 1.

    It is at most the error rate, and 0 where errors of all kinds cancel: what is left of a
    pool's proportions in a student, apart from how well it tells the classes apart.

    Args:
        predicted_M: The student's classes on the scored set; (M,) int64.
        expected_M: The true ones; (M,) int64.
        num_classes: K.

    Raises:
        ValueError: There are no samples, or a class is K or more.
    """
    if not len(predicted_M) or len(predicted_M) != len(expected_M):
        raise ValueError(f"got {len(predicted_M)} predictions of {len(expected_M)} samples")
    proportions = class_proportions(predicted_M, num_classes)
    reference = class_proportions(expected_M, num_classes)
    if max(len(proportions), len(reference)) > num_classes:
        raise ValueError(f"a class is outside 0 to {num_classes - 1}")
    return total_variation(proportions, reference)
