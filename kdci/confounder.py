"""The confounder dictionary Z: the teacher's predictions on the substitutes, clustered.

KDCI (CVPR 2024), "Confounder Dictionary Construction": M = {m_j in R^d}, j = 1..N_m, is
stratified by k-means into N clusters; z_i is the mean of cluster i and P(z_i) = N_i / N_m.
"""

# M = predictions (rows), N = prototypes, D = dimension d, K = classes

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdci.errors import NumericError, UserError
from kdci.models import PixelModel
from kdci.models.prediction import Prediction

MINI_BATCH_ROWS = 200_000
"""Above this many rows k-means goes by mini-batches."""

Space = Literal["logits", "probabilities", "features"]


@dataclass(frozen=True)
class ConfounderDictionary:
    """Z = [z_1, ..., z_N] with P(z_i).

    Attributes:
        prototypes_ND: z_i, the cluster means in the space of the predictions; (N, D).
        proportions_N: P(z_i) = N_i / N_m, positive, summing to 1; (N,).
        assignments_M: Cluster of each prediction it was built from, or None once stored; (M,).
        spread_N: Mean distance of a cluster's members to z_i; (N,).
    """

    prototypes_ND: Tensor
    proportions_N: Tensor
    spread_N: Tensor
    assignments_M: Tensor | None = None

    def __post_init__(self) -> None:
        num_prototypes = self.prototypes_ND.shape[0]
        if self.prototypes_ND.ndim != 2 or self.proportions_N.shape != (num_prototypes,):
            raise ValueError(
                f"prototypes {tuple(self.prototypes_ND.shape)} and proportions "
                f"{tuple(self.proportions_N.shape)} do not fit"
            )
        total = float(self.proportions_N.double().sum())
        if bool((self.proportions_N <= 0).any()) or abs(total - 1) > 1e-5:
            raise ValueError(f"proportions must be positive and sum to 1, they sum to {total:.6f}")

    def __len__(self) -> int:
        return self.prototypes_ND.shape[0]


def build_dictionary(
    predictions_MD: Tensor, *, num_prototypes: int, seed: int, start_ND: Tensor | None = None
) -> ConfounderDictionary:
    """Cluster predictions into prototypes with proportions.

    Args:
        predictions_MD: The teacher's predictions m_j; (M, D), float.
        num_prototypes: N asked for. Empty clusters (duplicates) are dropped.
        seed: Seed of k-means++.
        start_ND: Where k-means starts instead of k-means++, (N, D): the prototypes of an
            earlier pool. The order of the prototypes is then kept.

    Raises:
        UserError: There are fewer predictions than prototypes.
        NumericError: A prediction is not finite.
    """
    num_rows = predictions_MD.shape[0]
    if num_rows < num_prototypes:
        raise UserError(
            "dictionary.num_prototypes",
            f"{num_prototypes} clusters of {num_rows} predictions",
            f"at most {num_rows}, or a larger pool",
        )
    if not bool(torch.isfinite(predictions_MD).all()):
        raise NumericError("dictionary", "the teacher's predictions hold NaN or infinity")
    rows_MD = predictions_MD.double()
    labels_M = _cluster(rows_MD, num_prototypes, seed, start_ND)
    return _dictionary_of(rows_MD, labels_M, keep_order=start_ND is not None)


def _cluster(rows_MD: Tensor, num_prototypes: int, seed: int, start_ND: Tensor | None) -> Tensor:
    """Return the cluster of each row by k-means from k-means++ or from given starts."""
    import warnings

    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    given = start_ND is not None
    options = {
        "n_clusters": num_prototypes,
        "init": "k-means++" if start_ND is None else start_ND.double().numpy(),
        "random_state": seed % 2**32,
    }
    if rows_MD.shape[0] > MINI_BATCH_ROWS:
        kmeans = MiniBatchKMeans(n_init=1 if given else 3, batch_size=4096, **options)
    else:
        kmeans = KMeans(n_init=1 if given else 4, **options)
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: the empty ones are dropped below, and counted.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = kmeans.fit_predict(rows_MD.numpy())
    return torch.from_numpy(labels).long()


def _dictionary_of(
    rows_MD: Tensor, labels_M: Tensor, *, keep_order: bool = False
) -> ConfounderDictionary:
    """Return means, proportions and spreads of the non-empty clusters, largest first."""
    sizes = torch.bincount(labels_M)
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order.sort().values if keep_order else order
    order = order[sizes[order] > 0]
    rank = torch.empty_like(sizes)
    rank[order] = torch.arange(len(order))
    assignments_M = rank[labels_M]
    sizes_N = sizes[order].double()
    sums_ND = torch.zeros(len(order), rows_MD.shape[1], dtype=torch.float64)
    means_ND = sums_ND.index_add_(0, assignments_M, rows_MD) / sizes_N[:, None]
    distances_M = (rows_MD - means_ND[assignments_M]).norm(dim=1)
    spread_N = torch.zeros_like(sizes_N).index_add_(0, assignments_M, distances_M) / sizes_N
    return ConfounderDictionary(
        prototypes_ND=means_ND.float(),
        proportions_N=(sizes_N / sizes_N.sum()).float(),
        spread_N=spread_N.float(),
        assignments_M=assignments_M,
    )


def in_space(output: Prediction, space: Space) -> Tensor:
    """Return a model's output as predictions m_j: logits, their softmax, or features; (B, D)."""
    if space == "features":
        return output.features
    return output.logits.softmax(dim=1) if space == "probabilities" else output.logits


@torch.no_grad()
def predict(model: PixelModel, batches: Iterator[Tensor], *, space: Space) -> tuple[Tensor, Tensor]:
    """Return a pre-trained model's predictions m_j on images, and their classes.

    Args:
        model: In eval mode.
        batches: Image batches, float32 in [0, 1], (B, C, H, W).
        space: `logits`, `probabilities` (softmax) or `features` (penultimate).

    Returns:
        Predictions (M, D) and the class of each by its largest logit (M,), on the CPU.
    """
    predictions, classes = [], []
    for images in batches:
        output = model(images)
        classes.append(output.logits.argmax(dim=1).cpu())
        predictions.append(in_space(output, space).cpu())
    return torch.cat(predictions), torch.cat(classes)
