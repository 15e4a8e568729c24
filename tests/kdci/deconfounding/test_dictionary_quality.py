from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.deconfounding.confounder import ConfounderDictionary, build_dictionary
from kdci.deconfounding.dictionary_quality import (
    class_counts,
    effective_number,
    nearest_rows,
    normalised_mutual_information,
    purity,
    quality,
    top_classes,
)

# Two clusters: the first holds classes 0, 0, 0, 2, the second 1, 1, 2, 2. Class 3 is in no image.
ASSIGNMENTS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
CLASSES = torch.tensor([0, 0, 0, 2, 1, 1, 2, 2])
COUNTS = torch.tensor([[3, 0, 1, 0], [0, 2, 2, 0]])


def make_case(seed: int, num_clusters: int = 7, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Return clusters and classes that have something to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    assignments = torch.randint(num_clusters, (200,), generator=generator)
    assignments[:num_clusters] = torch.arange(num_clusters)
    noise = torch.randint(num_classes, (200,), generator=generator)
    agree = torch.rand(200, generator=generator) < 0.6
    return assignments, torch.where(agree, assignments % num_classes, noise)


def naive_purity(clusters: list[int], classes: list[int]) -> float:
    hits = 0
    for cluster in set(clusters):
        inside = [k for c, k in zip(clusters, classes, strict=True) if c == cluster]
        hits += max(Counter(inside).values())
    return hits / len(clusters)


def naive_nmi(clusters: list[int], classes: list[int]) -> float:
    total = len(clusters)
    pairs = Counter(zip(clusters, classes, strict=True))
    of_cluster, of_class = Counter(clusters), Counter(classes)
    information = sum(
        n / total * math.log(n * total / (of_cluster[c] * of_class[k]))
        for (c, k), n in pairs.items()
    )
    entropies = [
        -sum(n / total * math.log(n / total) for n in counts.values())
        for counts in (of_cluster, of_class)
    ]
    return information / (sum(entropies) / 2)


class TestEffectiveNumber:
    @pytest.mark.parametrize(
        ("proportions", "expected"),
        [
            ([1.0], 1.0),
            ([0.25] * 4, 4.0),
            ([0.5, 0.25, 0.25], 2 * math.sqrt(2)),  # 2^0.5 4^0.25 4^0.25
            ([1.0, 0.0], 1.0),
        ],
    )
    def test_by_hand(self, proportions: list[float], expected: float) -> None:
        assert effective_number(torch.tensor(proportions)) == pytest.approx(expected)

    def test_lies_between_1_and_n(self) -> None:
        proportions = torch.rand(30, generator=torch.Generator().manual_seed(0))
        proportions /= proportions.sum()
        naive = math.exp(-sum(p * math.log(p) for p in proportions.tolist()))
        assert effective_number(proportions) == pytest.approx(naive, rel=1e-5)
        assert 1 < effective_number(proportions) < 30


class TestAgreement:
    def test_counts_by_hand(self) -> None:
        assert torch.equal(class_counts(ASSIGNMENTS, CLASSES, 4), COUNTS)

    def test_purity_by_hand(self) -> None:
        assert purity(COUNTS) == 5 / 8

    def test_mutual_information_by_hand(self) -> None:
        """The classes 0, 1, 2 have shares of 3/8, 2/8 and 3/8, the clusters a half each."""
        of_class = -(2 * 3 / 8 * math.log(3 / 8) + 2 / 8 * math.log(2 / 8))
        within = 0.5 * -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) + 0.5 * math.log(2)
        expected = (of_class - within) / ((math.log(2) + of_class) / 2)
        assert normalised_mutual_information(COUNTS) == pytest.approx(expected)

    @pytest.mark.parametrize("seed", range(4))
    def test_equal_naive_loops_and_scikit_learn(self, seed: int) -> None:
        from sklearn.metrics import normalized_mutual_info_score

        assignments, classes = make_case(seed)
        counts = class_counts(assignments, classes, 5)
        clusters, labels = assignments.tolist(), classes.tolist()
        for cluster in range(7):
            for k in range(5):
                pairs = zip(clusters, labels, strict=True)
                assert counts[cluster, k] == sum(pair == (cluster, k) for pair in pairs)
        assert purity(counts) == pytest.approx(naive_purity(clusters, labels))
        found = normalised_mutual_information(counts)
        assert found == pytest.approx(naive_nmi(clusters, labels))
        assert found == pytest.approx(normalized_mutual_info_score(labels, clusters))

    def test_clusters_that_are_the_classes(self) -> None:
        counts = torch.diag(torch.tensor([5, 3, 9]))
        assert purity(counts) == 1.0
        assert normalised_mutual_information(counts) == pytest.approx(1.0)

    def test_many_clusters_are_pure_by_themselves_and_informative_less(self) -> None:
        counts = class_counts(torch.arange(40), torch.arange(40) % 4, 4)
        assert purity(counts) == 1.0
        assert normalised_mutual_information(counts) < 0.6

    def test_clusters_that_know_nothing_of_the_classes(self) -> None:
        assert normalised_mutual_information(torch.full((3, 4), 10)) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [([[4, 4]], 0.0), ([[4], [4]], 0.0), ([[8]], 1.0), ([[0, 8, 0]], 1.0)],
    )
    def test_one_cluster_or_one_class(self, counts: list[list[int]], expected: float) -> None:
        assert normalised_mutual_information(torch.tensor(counts)) == pytest.approx(expected)


class TestTopClasses:
    def test_by_hand_with_the_lower_class_first_among_equals(self) -> None:
        assert top_classes(COUNTS) == [
            [{"class": 0, "share": 0.75}, {"class": 2, "share": 0.25}],
            [{"class": 1, "share": 0.5}, {"class": 2, "share": 0.5}],
        ]

    def test_no_more_than_three(self) -> None:
        (found,) = top_classes(torch.tensor([[1, 40, 20, 30, 9]]))
        assert [entry["class"] for entry in found] == [1, 3, 2]
        assert [entry["share"] for entry in found] == [0.4, 0.3, 0.2]


class TestNearestRows:
    def test_by_hand(self) -> None:
        assignments = torch.tensor([1, 0, 1, 0, 1])
        distances = torch.tensor([3.0, 0.5, 1.0, 0.25, 1.0])
        assert nearest_rows(assignments, distances) == [[3, 1], [2, 4, 0]]
        assert nearest_rows(assignments, distances, limit=1) == [[3], [2]]

    def test_equal_a_naive_search_among_the_members(self) -> None:
        rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
        found = build_dictionary(rows, num_prototypes=6, seed=0)
        assert found.assignments_M is not None and found.distances_M is not None
        nearest = nearest_rows(found.assignments_M, found.distances_M)
        for index, chosen in enumerate(nearest):
            distances = [
                math.dist(row, found.prototypes_ND[index].tolist()) for row in rows.tolist()
            ]
            members = [m for m in range(300) if found.assignments_M[m] == index]
            assert chosen == sorted(members, key=lambda m: distances[m])[:8]


def described(rows: Tensor, classes: Tensor, num_prototypes: int) -> dict[str, Any]:
    found = build_dictionary(rows, num_prototypes=num_prototypes, seed=0)
    facts = quality(found, classes, num_classes=10)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    return facts


class TestQuality:
    def test_facts_of_a_dictionary_by_hand(self) -> None:
        rows = torch.tensor([[0.0], [2.0], [10.0], [10.0], [11.0], [12.0]])
        facts = described(rows, torch.tensor([4, 4, 7, 7, 7, 1]), 2)
        assert facts["sizes"] == [4, 2]
        assert facts["spread"] == pytest.approx([0.75, 1.0])  # from 10.75 and from 1
        assert facts["mean_spread"] == pytest.approx((4 * 0.75 + 2 * 1) / 6)
        shares = (4 / 6, 2 / 6)
        assert facts["effective_n"] == pytest.approx(math.prod(p**-p for p in shares))
        assert facts["purity"] == pytest.approx(5 / 6)
        assert facts["top_class"] == [7, 4]
        assert facts["top_classes"] == [
            [{"class": 7, "share": 0.75}, {"class": 1, "share": 0.25}],
            [{"class": 4, "share": 1.0}],
        ]
        assert facts["nearest_rows"] == [[4, 2, 3, 5], [0, 1]]

    def test_the_order_is_that_of_the_prototypes(self) -> None:
        rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(2))
        found = build_dictionary(rows, num_prototypes=8, seed=0)
        classes = rows.argmax(dim=1)
        facts = quality(found, classes, num_classes=3)
        torch.testing.assert_close(torch.tensor(facts["sizes"]) / 500, found.proportions_N)
        for index in range(8):
            members = found.assignments_M == index
            assert facts["top_class"][index] == int(classes[members].mode().values)
            assert len(facts["nearest_rows"][index]) == min(8, int(members.sum()))

    def test_duplicates_leave_no_nan(self) -> None:
        rows = torch.tensor([[0.0, 1.0]] * 30 + [[5.0, 5.0]] * 10)
        facts = described(rows, torch.tensor([0] * 30 + [9] * 10), 6)
        assert facts["sizes"] == [30, 10] and facts["spread"] == [0.0, 0.0]
        assert facts["effective_n"] == pytest.approx(0.75**-0.75 * 0.25**-0.25)
        assert facts["purity"] == 1.0 and facts["nmi"] == pytest.approx(1.0)
        assert facts["nearest_rows"] == [list(range(8)), list(range(30, 38))]

    def test_one_cluster(self) -> None:
        facts = described(torch.randn(50, 3), torch.arange(50) % 5, 1)
        assert facts["effective_n"] == 1.0 and facts["nmi"] == 0.0
        assert facts["purity"] == pytest.approx(0.2)

    def test_a_class_that_the_pool_lacks_is_in_no_prototype(self) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(200, 10, generator=generator)
        rows[:, 6] = -9
        classes = rows.argmax(dim=1)
        facts = described(rows, classes, 10)
        assert 6 not in facts["top_class"]
        assert all(entry["class"] != 6 for top in facts["top_classes"] for entry in top)
        assert 0 < facts["nmi"] < 1

    def test_needs_what_it_was_built_from(self) -> None:
        stored = ConfounderDictionary(torch.zeros(1, 2), torch.ones(1), torch.zeros(1))
        with pytest.raises(AssertionError):
            quality(stored, torch.zeros(3, dtype=torch.long), num_classes=2)
