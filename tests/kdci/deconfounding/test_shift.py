from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from kdci.deconfounding.shift import (
    entropy,
    expected_calibration_error,
    frechet_distance,
    marginal_bias,
    total_variation,
)
from kdci.errors import NumericError


def normal(rows: int, dimension: int, seed: int) -> Tensor:
    """Return correlated features off the origin."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, dimension, generator=generator, dtype=torch.float64)
    return noise @ mixing + torch.randn(dimension, generator=generator, dtype=torch.float64)


def by_matrix_root(one: Tensor, other: Tensor) -> float:
    """Return the distance as the papers write it."""
    a, b = one.double().numpy(), other.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(cov_a @ cov_b)
    shift = a.mean(axis=0) - b.mean(axis=0)
    return float(shift @ shift + np.trace(cov_a + cov_b - 2 * root.real))


class TestFrechetDistance:
    @pytest.mark.parametrize(("rows", "others"), [(200, 200), (60, 300)])
    def test_equals_the_matrix_root_of_the_papers(self, rows: int, others: int) -> None:
        one, other = normal(rows, 6, 0), normal(others, 6, 1)
        expected = by_matrix_root(one, other)
        assert expected > 1
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)

    def test_independent_features_have_a_closed_form(self) -> None:
        """Covariances diag(s^2) and diag(t^2): |mu_a - mu_b|^2 + sum (s - t)^2."""
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
        unit = corners * math.sqrt(7 / 8)  # 8 rows of unit unbiased variance, uncorrelated
        s, t = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.0]).double()
        shift = torch.tensor([1.0, -2.0, 2.0]).double()
        assert frechet_distance(unit * s, unit * t + shift) == pytest.approx(4 + 0.25 + 9)

    def test_one_dimension_by_hand(self) -> None:
        """Means 1 and 5, variances 2 and 8: 16 + (sqrt 2 - sqrt 8)^2 = 18."""
        got = frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [7.0]]))
        assert got == pytest.approx(18)

    def test_fewer_rows_than_dimensions(self) -> None:
        """Rank-deficient covariances, by the eigenvalues of a symmetric root of a ridge of 0."""
        one, other = normal(5, 20, 2), normal(7, 20, 3)
        cov_a, cov_b = (np.cov(x.numpy(), rowvar=False) for x in (one, other))
        values, vectors = np.linalg.eigh(cov_a)
        root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
        cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
        shift = (one.mean(dim=0) - other.mean(dim=0)).square().sum()
        expected = float(shift) + float(np.trace(cov_a) + np.trace(cov_b)) - 2 * cross
        assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
        # A covariance of 0, and one with dead dimensions.
        same = torch.ones(4, 3)
        assert frechet_distance(same, same + 2) == pytest.approx(12)
        dead = torch.cat([one, torch.zeros(5, 3)], dim=1)
        alive = torch.cat([other, torch.zeros(7, 3)], dim=1)
        assert frechet_distance(dead, alive) == pytest.approx(expected, rel=1e-6)

    def test_the_same_set_is_at_no_distance_and_never_below(self) -> None:
        for rows in (3, 40):
            features = 1e3 * normal(rows, 8, rows)
            scale = float(features.square().sum())
            assert 0 <= frechet_distance(features, features) <= 1e-12 * scale

    def test_invariances(self) -> None:
        one, other = normal(50, 4, 4), normal(60, 4, 5)
        expected = frechet_distance(one, other)
        rotation = torch.linalg.qr(normal(9, 4, 6)[:4]).Q
        order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        for a, b, factor in (
            (other, one, 1),
            (one[order], other, 1),
            (one + 7, other + 7, 1),
            (one @ rotation, other @ rotation, 1),
            (3 * one, 3 * other, 9),
        ):
            assert frechet_distance(a, b) == pytest.approx(factor * expected, rel=1e-9)
        assert frechet_distance(one + 100, other) > expected

    def test_single_precision_far_from_the_origin_keeps_its_digits(self) -> None:
        one, other = normal(80, 3, 7).float() + 1000, normal(80, 3, 8).float() + 1000
        got = frechet_distance(one, other)
        assert got == pytest.approx(frechet_distance(one.double() - 1000, other.double() - 1000))

    @pytest.mark.parametrize(
        ("one", "other"),
        [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5,)), ((0, 3), (5, 3))],
    )
    def test_sets_that_do_not_fit(self, one: tuple[int, ...], other: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="two sets of at least two features"):
            frechet_distance(torch.zeros(one), torch.zeros(other))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused(self, bad: float) -> None:
        features = torch.ones(4, 2)
        features[1, 1] = bad
        with pytest.raises(NumericError, match="teacher-FID"):
            frechet_distance(torch.ones(4, 2), features)


class TestProportions:
    def test_total_variation_by_hand(self) -> None:
        proportions = torch.tensor([0.5, 0.25, 0.25, 0.0])
        assert total_variation(proportions) == 0.25
        assert total_variation(proportions, torch.tensor([0.0, 0.25, 0.25, 0.5])) == 0.5
        assert total_variation(torch.full((7,), 1 / 7)) == pytest.approx(0, abs=1e-7)

    def test_total_variation_is_the_largest_difference_over_events(self) -> None:
        generator = torch.Generator().manual_seed(0)
        p, r = torch.rand(2, 6, generator=generator, dtype=torch.float64).softmax(dim=1)
        events = [
            sum(float(p[k] - r[k]) for k in range(6) if event >> k & 1) for event in range(2**6)
        ]
        assert total_variation(p, r) == total_variation(r, p) == pytest.approx(max(events))
        order = torch.tensor([3, 1, 0, 5, 2, 4])
        assert total_variation(p[order], r[order]) == pytest.approx(max(events))

    def test_total_variation_at_its_ends(self) -> None:
        one = torch.tensor([1.0, 0.0, 0.0, 0.0])
        assert total_variation(one) == 0.75  # 1 - 1/K
        assert total_variation(one, torch.tensor([0.0, 0.0, 0.0, 1.0])) == 1.0

    def test_entropy_by_hand(self) -> None:
        assert entropy(torch.tensor([0.5, 0.25, 0.25, 0.0])) == pytest.approx(1.5 * math.log(2))
        assert entropy(torch.full((10,), 0.1)) == pytest.approx(math.log(10))
        assert entropy(torch.tensor([0.0, 1.0, 0.0])) == 0.0

    @pytest.mark.parametrize("bad", [[0.5, 0.4], [1.5, -0.5], [math.nan, 1.0], [], [[1.0]]])
    def test_what_is_no_distribution_is_refused(self, bad: list[float]) -> None:
        for measure in (total_variation, entropy):
            with pytest.raises(ValueError, match="sum to 1"):
                measure(torch.tensor(bad))
        with pytest.raises(ValueError, match="over 2 and 3 classes"):
            total_variation(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0]))


def naive_calibration_error(logits: Tensor, expected: Tensor, num_bins: int) -> float:
    """Return Eq. (3) of Guo et al., one bin and one sample at a time."""
    error = 0.0
    probabilities = [[math.exp(v) for v in row] for row in logits.double().tolist()]
    probabilities = [[v / sum(row) for v in row] for row in probabilities]
    for m in range(num_bins):
        hits, confidences = [], []
        for row, label in zip(probabilities, expected.tolist(), strict=True):
            if m / num_bins < max(row) <= (m + 1) / num_bins:
                hits.append(row.index(max(row)) == label)
                confidences.append(max(row))
        if hits:
            gap = abs(sum(hits) / len(hits) - sum(confidences) / len(hits))
            error += len(hits) / len(logits) * gap
    return 100 * error


class TestCalibration:
    @pytest.mark.parametrize("num_bins", [1, 2, 15])
    def test_equals_naive_loops(self, num_bins: int) -> None:
        generator = torch.Generator().manual_seed(num_bins)
        logits = 2 * torch.randn(200, 4, generator=generator)
        expected = torch.randint(4, (200,), generator=generator)
        error = naive_calibration_error(logits, expected, num_bins)
        assert error > 5
        got = expected_calibration_error(logits, expected, num_bins=num_bins)
        assert got == pytest.approx(error)
        order = torch.randperm(200, generator=generator)
        again = expected_calibration_error(logits[order] + 9, expected[order], num_bins=num_bins)
        assert again == pytest.approx(error, abs=1e-3)

    def test_by_hand(self) -> None:
        """Confidence 0.8 four times, all right, and 0.6 once, wrong: (4 * 0.2 + 0.6) / 5."""
        confident, unsure = [math.log(0.8), math.log(0.2)], [math.log(0.6), math.log(0.4)]
        logits = torch.tensor([confident] * 4 + [unsure])
        labels = torch.tensor([0, 0, 0, 0, 1])
        assert expected_calibration_error(logits, labels) == pytest.approx(28, abs=1e-4)
        # In one bin an excess and a lack of confidence make up for each other.
        merged = expected_calibration_error(logits, labels, num_bins=1)
        assert merged == pytest.approx(100 * (4 / 5 - 3.8 / 5), abs=1e-4)

    def test_the_upper_edge_belongs_to_a_bin(self) -> None:
        """Confidence 0.5, right, and 0.9, wrong, of two bins: (0.5 + 0.9) / 2."""
        logits = torch.tensor([[0.0, 0.0], [math.log(0.9), math.log(0.1)]])
        got = expected_calibration_error(logits, torch.tensor([0, 1]), num_bins=2)
        assert got == pytest.approx(70, abs=1e-4)

    def test_the_ends(self) -> None:
        sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
        assert expected_calibration_error(sure, torch.tensor([0, 1])) == pytest.approx(0, abs=1e-9)
        assert expected_calibration_error(sure, torch.tensor([1, 0])) == pytest.approx(100)

    def test_misuse(self) -> None:
        for logits, labels, bins in ((3, 2, 15), (0, 0, 15), (3, 3, 0)):
            with pytest.raises(ValueError, match="a class for each of the samples"):
                expected_calibration_error(
                    torch.zeros(logits, 2), torch.zeros(labels).long(), num_bins=bins
                )


class TestMarginalBias:
    def test_by_hand(self) -> None:
        expected = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        predicted = torch.tensor([0, 0, 0, 0, 0, 2, 2, 2])  # 5, 0, 3, 0 for 2, 2, 2, 2
        assert marginal_bias(predicted, expected, 4) == 0.5
        assert marginal_bias(predicted, expected, 9) == 0.5  # classes without samples

    def test_errors_that_cancel_are_no_bias(self) -> None:
        expected = torch.tensor([0, 1, 2])
        assert marginal_bias(torch.tensor([1, 2, 0]), expected, 3) == 0.0

    def test_is_at_most_the_error_rate(self) -> None:
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            expected, other = torch.randint(4, (2, 30), generator=generator)
            predicted = torch.where(torch.rand(30, generator=generator) < 0.5, expected, other)
            error = float((predicted != expected).double().mean())
            assert 0 <= marginal_bias(predicted, expected, 4) <= error + 1e-12

    def test_misuse(self) -> None:
        some = torch.tensor([0, 1, 2])
        with pytest.raises(ValueError, match="2 predictions of 3 samples"):
            marginal_bias(some[:2], some, 3)
        with pytest.raises(ValueError, match="0 predictions"):
            marginal_bias(some[:0], some[:0], 3)
        with pytest.raises(ValueError, match="outside 0 to 1"):
            marginal_bias(some, some, 2)
