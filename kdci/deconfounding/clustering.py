"""k-means over rows that need not fit into memory.

Up to ``MINI_BATCH_ROWS`` rows are held, after one pass over them, and clustered exactly. Of more a
random sample is held, and three passes find the sample, the clusters with their means, and the
distances. A row then costs a label and a distance, whatever its dimension.
"""

# M = rows, N = clusters, D = dimension, S = rows that k-means is fitted to, B = batch

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdci.errors import NumericError

MINI_BATCH_ROWS = 200_000
"""Above this many rows k-means goes by mini-batches over a random sample of this many."""
CHUNK_ROWS = 8192
"""Rows at a time where all of them are in memory."""

Batches = Callable[[], Iterable[Tensor]]
"""Starts a pass over the rows: batches (B, D), the same rows in the same order every time."""


@dataclass(frozen=True)
class Clusters:
    """Clusters as k-means numbers them; some may be empty.

    Attributes:
        labels_M: Cluster of each row; (M,).
        sizes_N: Members of each cluster; (N,).
        means_ND: Mean of the members, 0 of an empty cluster; (N, D), double precision.
        distances_M: Distance of each row to the mean of its cluster; (M,), double precision.
    """

    labels_M: Tensor
    sizes_N: Tensor
    means_ND: Tensor
    distances_M: Tensor


def cluster(
    batches: Batches,
    *,
    num_rows: int,
    num_clusters: int,
    seed: int,
    start_ND: Tensor | None = None,
) -> Clusters:
    """Cluster rows by k-means.

    Args:
        batches: Starts a pass.
        num_rows: M, the rows of a pass.
        num_clusters: N.
        seed: Of k-means++ and of the sample.
        start_ND: Where k-means starts instead of k-means++; (N, D).

    Raises:
        NumericError: A value is not finite.
        ValueError: A pass has another number of rows.
    """
    from threadpoolctl import threadpool_limits

    labelled: Iterable[tuple[Tensor, Tensor]]
    again: Iterable[Tensor]
    # scikit-learn computes on as many threads as torch, for its own count is the machine's: how
    # sums are split among threads decides their last bits.
    with threadpool_limits(torch.get_num_threads()):
        if num_rows > MINI_BATCH_ROWS:
            # A random sample: the first rows alone may be of one class, or of one time.
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(num_rows, generator=generator)[:MINI_BATCH_ROWS]
            rows_SD = _gather(batches, chosen.sort().values, num_rows, torch.float32)
            kmeans = _fit(rows_SD, num_clusters, seed, start_ND, mini_batches=True)
            again = _pass(batches, num_rows)
            labelled = ((rows, _labels(kmeans, rows)) for rows in _pass(batches, num_rows))
        else:
            rows_MD = _gather(batches, torch.arange(num_rows), num_rows, torch.float64)
            kmeans = _fit(rows_MD, num_clusters, seed, start_ND)
            labels_M = torch.from_numpy(kmeans.labels_).long()
            again = torch.split(rows_MD, CHUNK_ROWS)
            labelled = zip(again, torch.split(labels_M, CHUNK_ROWS), strict=True)
        return _measure(labelled, again, num_rows=num_rows, num_clusters=num_clusters)


def _pass(batches: Batches, num_rows: int) -> Iterator[Tensor]:
    """Yield the batches of a pass; a pass of another length is an error."""
    found = 0
    for rows_BD in batches():
        found += len(rows_BD)
        if found > num_rows:
            raise ValueError(f"a pass has {found} rows or more, not {num_rows}")
        yield rows_BD
    if found < num_rows:
        raise ValueError(f"a pass has {found} rows, not {num_rows}")


def _gather(batches: Batches, chosen_S: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Return the rows of a pass with these sorted numbers; (S, D)."""
    rows_SD = torch.empty(0)
    start = 0
    for rows_BD in _pass(batches, num_rows):
        if not bool(torch.isfinite(rows_BD).all()):
            raise NumericError("dictionary", "the teacher's predictions hold NaN or infinity")
        if start == 0:
            rows_SD = torch.empty(len(chosen_S), rows_BD.shape[1], dtype=dtype)
        ends = torch.tensor([start, start + len(rows_BD)])
        first, last = torch.searchsorted(chosen_S, ends).tolist()
        rows_SD[first:last] = rows_BD[chosen_S[first:last] - start].to(dtype)
        start += len(rows_BD)
    return rows_SD


def _fit(
    rows_SD: Tensor,
    num_clusters: int,
    seed: int,
    start_ND: Tensor | None,
    *,
    mini_batches: bool = False,
) -> Any:
    """Fit k-means from k-means++ or from given starts."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    given = start_ND is not None
    options = {
        "n_clusters": num_clusters,
        "init": "k-means++" if start_ND is None else start_ND.double().numpy(),
        "random_state": seed % 2**32,
    }
    if mini_batches:
        kmeans = MiniBatchKMeans(n_init=1 if given else 3, batch_size=4096, **options)
    else:
        kmeans = KMeans(n_init=1 if given else 4, **options)
    with warnings.catch_warnings():
        # Fewer distinct points than clusters: some stay empty, and ``Clusters`` says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(rows_SD.numpy())


def _labels(kmeans: Any, rows_BD: Tensor) -> Tensor:
    return torch.from_numpy(kmeans.predict(rows_BD.float().numpy())).long()


def _measure(
    labelled: Iterable[tuple[Tensor, Tensor]],
    again: Iterable[Tensor],
    *,
    num_rows: int,
    num_clusters: int,
) -> Clusters:
    """Add up sizes and means, then the distances to the means.

    What stays of each batch goes into tensors made beforehand. As small tensors of their own they
    would lie in the gaps that batches leave in memory, and each next batch would need a new one.
    """
    labels_M = torch.empty(num_rows, dtype=torch.int64)
    distances_M = torch.empty(num_rows, dtype=torch.float64)
    sums_ND, start = torch.empty(0), 0
    for rows_BD, labels_B in labelled:
        if start == 0:
            sums_ND = torch.zeros(num_clusters, rows_BD.shape[1], dtype=torch.float64)
        sums_ND.index_add_(0, labels_B, rows_BD.double())
        labels_M[start : start + len(labels_B)] = labels_B
        start += len(labels_B)
    sizes_N = torch.bincount(labels_M, minlength=num_clusters)
    means_ND = sums_ND / sizes_N.clamp(min=1).double()[:, None]
    start = 0
    for rows_BD in again:
        inside = slice(start, start + len(rows_BD))
        distances_M[inside] = (rows_BD.double() - means_ND[labels_M[inside]]).norm(dim=1)
        start += len(rows_BD)
    return Clusters(labels_M, sizes_N, means_ND, distances_M)
