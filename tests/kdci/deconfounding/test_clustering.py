from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_info
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdci.deconfounding import clustering
from kdci.deconfounding.clustering import Clusters, cluster
from kdci.deconfounding.confounder import build_dictionary, build_dictionary_by_batches
from kdci.errors import NumericError

NUM_CLUSTERS, DIMENSION, BATCH = 6, 16, 100


def make_batch(first: int, size: int) -> Tensor:
    """Return rows around six far-apart centres; the same whenever they are asked for."""
    generator = torch.Generator().manual_seed(first)
    centres = 8 * torch.eye(NUM_CLUSTERS, DIMENSION)
    weights = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.07, 0.03])
    centre_of = torch.multinomial(weights, size, replacement=True, generator=generator)
    return centres[centre_of] + 0.4 * torch.randn(size, DIMENSION, generator=generator)


class Passes:
    """A factory of batches that counts its passes and how many batches live at a time."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows, self.num_passes, self.most_alive = num_rows, 0, 0
        self._alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __call__(self) -> Iterator[Tensor]:
        self.num_passes += 1
        for first in range(0, self.num_rows, BATCH):
            batch = make_batch(first, min(BATCH, self.num_rows - first))
            self._alive.add(batch)
            self.most_alive = max(self.most_alive, len(self._alive))
            yield batch
            del batch  # else the generator itself would hold two

    def whole(self) -> Tensor:
        return torch.cat(list(Passes(self.num_rows)()))


class LargestFloats(TorchDispatchMode):
    """Sees the result of every torch operation and keeps the size of the largest of floats."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.largest = max(self.largest, value.numel())
        return result


def assert_same_clusters(one: Clusters, other: Clusters) -> None:
    for name in ("labels_M", "sizes_N"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    for name in ("means_ND", "distances_M"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-9)


class TestManyRows:
    """Above the limit: here 2,000 rows, not 200,000."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 2_000)

    def test_a_sample_a_batch_and_numbers_of_rows_are_all_that_torch_holds(self) -> None:
        num_rows = 60_000
        passes = Passes(num_rows)
        with LargestFloats() as seen:
            found = cluster(passes, num_rows=num_rows, num_clusters=NUM_CLUSTERS, seed=0)
        assert len(found.sizes_N) == NUM_CLUSTERS
        assert passes.most_alive <= 2
        assert seen.largest == max(num_rows, 2_000 * DIMENSION)  # a distance a row; the sample

    def test_k_means_itself_holds_no_more_than_the_sample(self) -> None:
        peaks = []
        for num_rows in (2_500, 2_500, 60_000):  # once more, for what is imported on the way
            tracemalloc.start()
            try:
                cluster(Passes(num_rows), num_rows=num_rows, num_clusters=NUM_CLUSTERS, seed=0)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert peaks[2] < peaks[1] + 2_000 * DIMENSION * 4

    def test_three_passes_and_one_where_the_rows_are_few(self) -> None:
        many, few = Passes(2_001), Passes(2_000)
        for passes in (many, few):
            cluster(passes, num_rows=passes.num_rows, num_clusters=NUM_CLUSTERS, seed=0)
        assert (many.num_passes, few.num_passes) == (3, 1)

    def test_clusters_are_those_of_k_means_over_all_rows(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes = Passes(9_050)
        sampled = build_dictionary_by_batches(
            passes, num_rows=9_050, num_prototypes=NUM_CLUSTERS, seed=0
        )
        in_memory = build_dictionary(passes.whole(), num_prototypes=NUM_CLUSTERS, seed=0)
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 10_000)
        exact = build_dictionary(passes.whole(), num_prototypes=NUM_CLUSTERS, seed=0)
        for found in (sampled, in_memory):
            assert found.assignments_M is not None and exact.assignments_M is not None
            assert torch.equal(found.assignments_M, exact.assignments_M)
            assert torch.equal(found.proportions_N, exact.proportions_N)
            torch.testing.assert_close(found.prototypes_ND, exact.prototypes_ND)
            torch.testing.assert_close(found.spread_N, exact.spread_N)

    def test_means_and_distances_are_those_of_the_members(self) -> None:
        passes = Passes(2_300)
        found = cluster(passes, num_rows=2_300, num_clusters=NUM_CLUSTERS, seed=0)
        rows = passes.whole().double()
        for index in range(NUM_CLUSTERS):
            members = rows[found.labels_M == index]
            assert len(members) == found.sizes_N[index]
            torch.testing.assert_close(found.means_ND[index], members.mean(dim=0))
            expected = torch.stack(
                [(row - found.means_ND[index]).square().sum() for row in members]
            )
            torch.testing.assert_close(found.distances_M[found.labels_M == index], expected.sqrt())

    def test_rows_in_the_order_of_their_clusters_are_no_trap(self) -> None:
        """The first rows alone, all of one cluster, would be a bad sample."""
        rows = Passes(9_000).whole()
        nearest = torch.cdist(rows, 8 * torch.eye(NUM_CLUSTERS, DIMENSION)).argmin(dim=1)
        by_cluster = nearest.argsort(stable=True)
        found = build_dictionary(rows[by_cluster], num_prototypes=NUM_CLUSTERS, seed=0)
        expected = torch.bincount(nearest).sort(descending=True).values / 9_000
        torch.testing.assert_close(found.proportions_N, expected)

    def test_same_seed_same_clusters(self) -> None:
        rows = torch.randn(5_000, 4, generator=torch.Generator().manual_seed(0))
        found = [
            cluster(lambda: rows.split(512), num_rows=5_000, num_clusters=5, seed=seed)
            for seed in (7, 7, 8)
        ]
        assert torch.equal(found[0].labels_M, found[1].labels_M)
        assert torch.equal(found[0].means_ND, found[1].means_ND)
        assert not torch.equal(found[0].means_ND, found[2].means_ND)

    def test_how_rows_are_cut_into_batches_does_not_matter(self) -> None:
        rows = Passes(3_000).whole()
        one, other = (
            cluster(lambda size=size: rows.split(size), num_rows=3_000, num_clusters=6, seed=0)
            for size in (3_000, 77)
        )
        assert_same_clusters(one, other)

    def test_a_start_keeps_its_order(self) -> None:
        passes = Passes(4_000)
        start = 8 * torch.eye(NUM_CLUSTERS, DIMENSION).flip(0)
        found = build_dictionary_by_batches(
            passes, num_rows=4_000, num_prototypes=NUM_CLUSTERS, seed=0, start_ND=start
        )
        torch.testing.assert_close(found.prototypes_ND, start, atol=0.2, rtol=0)

    def test_duplicates_leave_clusters_empty_without_nan(self) -> None:
        rows = torch.tensor([[0.0, 1.0]] * 3_000 + [[5.0, 5.0]] * 1_000)
        found = cluster(lambda: rows.split(100), num_rows=4_000, num_clusters=5, seed=0)
        assert found.sizes_N.sum() == 4_000
        assert sorted(found.sizes_N.tolist())[:3] == [0, 0, 0]
        assert bool(found.means_ND.isfinite().all())
        assert found.distances_M.tolist() == [0.0] * 4_000


class TestPasses:
    @pytest.mark.parametrize("limit", [10, 1_000])
    @pytest.mark.parametrize("num_rows", [199, 201])
    def test_another_number_of_rows_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, num_rows: int, limit: int
    ) -> None:
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", limit)
        with pytest.raises(ValueError, match=f"200 rows.*not {num_rows}"):
            cluster(Passes(200), num_rows=num_rows, num_clusters=2, seed=0)

    def test_batches_that_can_be_had_once_only_are_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 100)
        once = Passes(200)()
        with pytest.raises(ValueError, match="0 rows"):
            cluster(lambda: once, num_rows=200, num_clusters=2, seed=0)

    @pytest.mark.parametrize("limit", [10, 1_000])
    def test_a_value_that_is_not_finite_is_a_numeric_error(
        self, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", limit)
        rows = Passes(300).whole()
        rows[-1, -1] = float("inf")  # in no sample, it would go unseen
        with pytest.raises(NumericError):
            cluster(lambda: rows.split(100), num_rows=300, num_clusters=2, seed=0)

    def test_few_rows_of_any_batch_size_give_the_same_bits(self) -> None:
        rows = Passes(777).whole()
        whole = cluster(lambda: [rows], num_rows=777, num_clusters=6, seed=3)
        cut = cluster(lambda: rows.split(10), num_rows=777, num_clusters=6, seed=3)
        for name in ("labels_M", "sizes_N", "means_ND", "distances_M"):
            assert torch.equal(getattr(whole, name), getattr(cut, name))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("mini_batches", [False, True])
def test_scikit_learn_computes_on_the_threads_of_torch(
    num_threads: int, mini_batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own number is that of the cores, or of OMP_NUM_THREADS, whatever runtime.threads says."""
    kind = MiniBatchKMeans if mini_batches else KMeans
    fit, seen = kind.fit, []

    def looked_at(self: Any, rows: Any) -> Any:
        libraries = [lib for lib in threadpool_info() if lib["user_api"] == "openmp"]
        seen.append({library["num_threads"] for library in libraries})
        return fit(self, rows)

    monkeypatch.setattr(kind, "fit", looked_at)
    monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 100 if mini_batches else 10_000)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        cluster(Passes(300), num_rows=300, num_clusters=NUM_CLUSTERS, seed=0)
        assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert seen == [{num_threads}]
