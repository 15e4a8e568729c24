"""What a confounder dictionary is like: how even, how tight, and what classes its strata hold.

None of it needs labels: classes are the teacher's own, by its largest logit.
"""

# M = predictions, N = prototypes, K = classes

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kdci.deconfounding.confounder import ConfounderDictionary
from kdci.deconfounding.shift import entropy

MAX_CLASSES = 3
"""Classes that are named for a prototype."""
MAX_NEAREST = 8
"""Nearest images that are named for a prototype."""


def effective_number(proportions_N: Tensor) -> float:
    """Return exp of the entropy of P(z): N where all are alike, 1 where one has everything."""
    return math.exp(entropy(proportions_N))


def class_counts(assignments_M: Tensor, classes_M: Tensor, num_classes: int) -> Tensor:
    """Return how many predictions of each cluster have each class; (N, K)."""
    num_prototypes = int(assignments_M.max()) + 1
    pairs_M = assignments_M * num_classes + classes_M
    counts = torch.bincount(pairs_M, minlength=num_prototypes * num_classes)
    return counts.reshape(num_prototypes, num_classes)


def purity(counts_NK: Tensor) -> float:
    """Return the share of predictions whose class is the most frequent one of their cluster."""
    return int(counts_NK.max(dim=1).values.sum()) / int(counts_NK.sum())


def normalised_mutual_information(counts_NK: Tensor) -> float:
    """Return I(cluster; class) / mean(H(cluster), H(class)), from 0 to 1.

    Purity grows with N by itself, this does not. One cluster of one class is a perfect match, 1;
    one cluster of several classes, or several clusters of one, tells nothing, 0.
    """
    joint_NK = counts_NK.double() / counts_NK.sum()
    of_cluster, of_class = entropy(joint_NK.sum(dim=1)), entropy(joint_NK.sum(dim=0))
    if of_cluster == of_class == 0:
        return 1.0
    information = of_cluster + of_class - entropy(joint_NK.flatten())
    return min(max(2 * information / (of_cluster + of_class), 0.0), 1.0)


def top_classes(counts_NK: Tensor, *, limit: int = MAX_CLASSES) -> list[list[dict[str, Any]]]:
    """Return the most frequent classes of each cluster with their shares, those it has at all."""
    shares_NK = counts_NK.double() / counts_NK.sum(dim=1, keepdim=True)
    order_NK = torch.argsort(counts_NK, dim=1, descending=True, stable=True)[:, :limit]
    return [
        [
            {"class": index, "share": float(shares_K[index])}
            for index in order
            if shares_K[index] > 0
        ]
        for shares_K, order in zip(shares_NK, order_NK.tolist(), strict=True)
    ]


def nearest_rows(
    assignments_M: Tensor, distances_M: Tensor, *, limit: int = MAX_NEAREST
) -> list[list[int]]:
    """Return the members of each cluster that are nearest to z_i, nearest first, as rows."""
    by_distance_M = torch.argsort(distances_M, stable=True)
    clusters_M = assignments_M[by_distance_M]
    num_prototypes = int(assignments_M.max()) + 1
    return [by_distance_M[clusters_M == i][:limit].tolist() for i in range(num_prototypes)]


def quality(
    dictionary: ConfounderDictionary, classes_M: Tensor, *, num_classes: int
) -> dict[str, Any]:
    """Return the facts of a dictionary that was just built, as JSON types.

    Args:
        dictionary: With the assignments and distances it was built from.
        classes_M: The teacher's class of each prediction; (M,).
        num_classes: K.

    Returns:
        sizes [N], spread [N] and mean_spread (distances to z_i), effective_n (exp of P(z)'s
        entropy), purity, nmi, top_class [N], top_classes [N][up to 3], nearest_rows [N][up to 8].
    """
    assignments_M, distances_M = dictionary.assignments_M, dictionary.distances_M
    assert assignments_M is not None and distances_M is not None
    counts_NK = class_counts(assignments_M, classes_M, num_classes)
    named = top_classes(counts_NK)
    return {
        "sizes": counts_NK.sum(dim=1).tolist(),
        "spread": dictionary.spread_N.tolist(),
        "mean_spread": float(distances_M.double().mean()),
        "effective_n": effective_number(dictionary.proportions_N),
        "purity": purity(counts_NK),
        "nmi": normalised_mutual_information(counts_NK),
        "top_class": [classes[0]["class"] for classes in named],
        "top_classes": named,
        "nearest_rows": nearest_rows(assignments_M, distances_M),
    }
