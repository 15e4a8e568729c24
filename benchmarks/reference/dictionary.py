"""Dictionary building as a plain script does it: files, logits in a list, scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.reference.networks import device_of


def plain_dictionary(
    teacher: nn.Module, batches: Iterable[Tensor], num_prototypes: int, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return cluster means (N, K) and proportions (N,) of a teacher's logits.

    Args:
        teacher: Classifier of normalised images, in eval mode.
        batches: One pass over the pool, normalised.
        num_prototypes: N.
        seed: Of k-means.
    """
    from sklearn.cluster import KMeans

    logits: list[Tensor] = []
    device = device_of(teacher)
    with torch.no_grad():
        for images in batches:
            logits.append(teacher(images.to(device))[0].cpu())
    rows = torch.cat(logits).double().numpy()
    kmeans = KMeans(num_prototypes, n_init=4, random_state=seed).fit(rows)
    labels = kmeans.labels_
    means = np.stack([rows[labels == index].mean(0) for index in range(num_prototypes)])
    return means, np.bincount(labels, minlength=num_prototypes) / len(rows)
