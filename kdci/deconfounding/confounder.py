"""The confounder dictionary Z: the teacher's predictions on the substitutes, clustered.

KDCI (CVPR 2024), "Confounder Dictionary Construction": M = {m_j in R^d}, j = 1..N_m, is
stratified by k-means into N clusters; z_i is the mean of cluster i and P(z_i) = N_i / N_m.

Degenerate pools give smaller dictionaries, never broken ones. Duplicates leave clusters empty:
those are dropped, so that every P(z_i) is above 0 and they still sum to 1. One prototype has
lambda = 1 and P(z) = 1, so that F(z) is scale * z whatever the student says. A class that the
pool lacks has no prototype. Fewer predictions than prototypes are a user error.
"""

# M = predictions (rows), N = prototypes, D = dimension d, B = batch

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kdci.deconfounding.clustering import CHUNK_ROWS, Batches, Clusters, cluster
from kdci.errors import UserError
from kdci.models import PixelModel
from kdci.models.pixel_model import Prediction

Space = Literal["logits", "probabilities", "features"]


@dataclass(frozen=True)
class ConfounderDictionary:
    """Z = [z_1, ..., z_N] with P(z_i).

    Attributes:
        prototypes_ND: z_i, the cluster means in the space of the predictions; (N, D).
        proportions_N: P(z_i) = N_i / N_m, positive, summing to 1; (N,).
        spread_N: Mean distance of a cluster's members to z_i; (N,).
        assignments_M: Cluster of each prediction it was built from, or None once stored; (M,).
        distances_M: Distance of each of them to the z_i of its cluster, or None; (M,).
    """

    prototypes_ND: Tensor
    proportions_N: Tensor
    spread_N: Tensor
    assignments_M: Tensor | None = None
    distances_M: Tensor | None = None

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


def dictionary_hash(prototypes_ND: Tensor, proportions_N: Tensor) -> str:
    """Return what equal dictionaries share whatever they were made from: a SHA-256.

    It is over the bytes of z_i, row by row, then of P(z_i), as little-endian float32. The shape
    needs no bytes of its own: proportions are positive and sum to 1, so the bytes tell N.
    """
    digest = hashlib.sha256()
    for values in (prototypes_ND, proportions_N):
        digest.update(values.detach().cpu().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


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
    return build_dictionary_by_batches(
        lambda: torch.split(predictions_MD, CHUNK_ROWS),
        num_rows=predictions_MD.shape[0],
        num_prototypes=num_prototypes,
        seed=seed,
        start_ND=start_ND,
    )


def build_dictionary_by_batches(
    batches: Batches,
    *,
    num_rows: int,
    num_prototypes: int,
    seed: int,
    start_ND: Tensor | None = None,
) -> ConfounderDictionary:
    """Cluster predictions that need not fit into memory.

    The result is that of ``build_dictionary``; see ``kdci.deconfounding.clustering`` for what is
    held.

    Args:
        batches: Starts a pass over the predictions: batches (B, D), the same rows in the same
            order every time. There are three, or one where all predictions can be held.
        num_rows: M, the rows of a pass.
        num_prototypes: See ``build_dictionary``, as for the others.
        seed: Of the sample, too, that a large pool is clustered by.
        start_ND: See there.

    Raises:
        ValueError: A pass has another number of rows; see also there.
    """
    if num_rows < num_prototypes:
        raise UserError(
            "dictionary.num_prototypes",
            f"{num_prototypes} clusters of {num_rows} predictions",
            f"at most {num_rows}, or a larger pool",
        )
    clusters = cluster(
        batches, num_rows=num_rows, num_clusters=num_prototypes, seed=seed, start_ND=start_ND
    )
    return _dictionary_of(clusters, keep_order=start_ND is not None)


def _dictionary_of(clusters: Clusters, *, keep_order: bool) -> ConfounderDictionary:
    """Return the non-empty clusters, largest first unless their order is to be kept."""
    sizes = clusters.sizes_N
    order = torch.argsort(sizes, descending=True, stable=True)
    order = order.sort().values if keep_order else order
    order = order[sizes[order] > 0]
    rank = torch.empty_like(sizes)
    rank[order] = torch.arange(len(order))
    assignments_M = rank[clusters.labels_M]
    sizes_N = sizes[order].double()
    totals_N = torch.zeros_like(sizes_N).index_add_(0, assignments_M, clusters.distances_M)
    return ConfounderDictionary(
        prototypes_ND=clusters.means_ND[order].float(),
        proportions_N=(sizes_N / sizes_N.sum()).float(),
        spread_N=(totals_N / sizes_N).float(),
        assignments_M=assignments_M,
        distances_M=clusters.distances_M.float(),
    )


def in_space(output: Prediction, space: Space) -> Tensor:
    """Return a model's output as predictions m_j: logits, their softmax, or features; (B, D)."""
    if space == "features":
        return output.features
    return output.logits.softmax(dim=1) if space == "probabilities" else output.logits


@torch.no_grad()
def prediction_batches(
    model: PixelModel, batches: Iterable[Tensor], *, space: Space
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a pre-trained model's predictions m_j on images, and their classes.

    Args:
        model: In eval mode.
        batches: Image batches, float32 in [0, 1], (B, C, H, W).
        space: `logits`, `probabilities` (softmax) or `features` (penultimate).

    Yields:
        Predictions (B, D) and the class of each by its largest logit (B,), on the CPU.
    """
    for images_BCHW in batches:
        output = model(images_BCHW)
        yield in_space(output, space).cpu(), output.logits.argmax(dim=1).cpu()


def predict(model: PixelModel, batches: Iterable[Tensor], *, space: Space) -> tuple[Tensor, Tensor]:
    """Return all predictions (M, D) and classes (M,) at once; see ``prediction_batches``."""
    predictions, classes = zip(*prediction_batches(model, batches, space=space), strict=True)
    return torch.cat(predictions), torch.cat(classes)


class PoolPredictions:
    """A pre-trained model's predictions on a pool, made anew in every pass.

    Calling it starts a pass: it is what ``build_dictionary_by_batches`` asks for.

    Args:
        model: In eval mode.
        images: Starts a pass over the pool: float32 batches in [0, 1], (B, C, H, W).
        num_rows: M, the images of a pass.
        space: Of the predictions.

    Attributes:
        classes_M: The model's class of each image by its largest logit, known after a pass; (M,).
    """

    def __init__(
        self,
        model: PixelModel,
        images: Callable[[], Iterable[Tensor]],
        *,
        num_rows: int,
        space: Space,
    ) -> None:
        self._model, self._images, self._space = model, images, space
        self.classes_M = torch.zeros(num_rows, dtype=torch.int64)

    def __call__(self) -> Iterator[Tensor]:
        """Yield predictions (B, D)."""
        start = 0
        for predictions_BD, classes_B in prediction_batches(
            self._model, self._images(), space=self._space
        ):
            self.classes_M[start : start + len(classes_B)] = classes_B
            start += len(classes_B)
            yield predictions_BD
