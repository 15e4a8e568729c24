from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdci.deconfounding import clustering, confounder
from kdci.deconfounding.compensation import Compensation, Fusion, Scale
from kdci.deconfounding.confounder import (
    ConfounderDictionary,
    PoolPredictions,
    build_dictionary,
    build_dictionary_by_batches,
    dictionary_hash,
    predict,
)
from kdci.errors import NumericError, UserError
from kdci.models import PixelModel

CENTRES = torch.tensor([[9.0, 0.0, 0.0], [0.0, -9.0, 0.0], [0.0, 0.0, 9.0], [5.0, 5.0, 5.0]])
SIZES = (40, 100, 10, 50)


def make_blobs() -> tuple[Tensor, Tensor]:
    """Return shuffled rows around well-separated centres, and the centre of each."""
    generator = torch.Generator().manual_seed(0)
    centre_of = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    centre_of = centre_of[torch.randperm(len(centre_of), generator=generator)]
    noise = 0.3 * torch.randn(len(centre_of), 3, generator=generator)
    return CENTRES[centre_of] + noise, centre_of


def make_rows(num_rows: int = 300, dimension: int = 5) -> Tensor:
    return torch.randn(num_rows, dimension, generator=torch.Generator().manual_seed(1))


def assert_equal(one: ConfounderDictionary, other: ConfounderDictionary) -> None:
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name))


class TestBuildDictionary:
    def test_prototypes_are_the_means_of_their_members(self) -> None:
        rows = make_rows()
        found = build_dictionary(rows, num_prototypes=7, seed=0)
        assert found.assignments_M is not None
        members: dict[int, list[list[float]]] = {}
        for row, cluster in zip(rows.double().tolist(), found.assignments_M.tolist(), strict=True):
            members.setdefault(cluster, []).append(row)
        assert sorted(members) == list(range(7)) == list(range(len(found)))
        for cluster, inside in members.items():
            mean = [sum(column) / len(inside) for column in zip(*inside, strict=True)]
            torch.testing.assert_close(found.prototypes_ND[cluster], torch.tensor(mean))
            assert float(found.proportions_N[cluster]) == pytest.approx(len(inside) / 300)
            distances = [
                sum((a - b) ** 2 for a, b in zip(row, mean, strict=True)) ** 0.5 for row in inside
            ]
            assert float(found.spread_N[cluster]) == pytest.approx(sum(distances) / len(inside))
            assert found.distances_M is not None
            own = found.distances_M[found.assignments_M == cluster]
            assert own.tolist() == pytest.approx(distances, rel=1e-5)

    def test_members_are_nearest_to_their_own_prototype(self) -> None:
        rows = make_rows()
        found = build_dictionary(rows, num_prototypes=7, seed=0)
        nearest = torch.cdist(rows, found.prototypes_ND).argmin(dim=1)
        assert found.assignments_M is not None
        assert float(nearest.eq(found.assignments_M).float().mean()) > 0.99

    def test_proportions_sum_to_one_largest_first(self) -> None:
        found = build_dictionary(make_rows(), num_prototypes=12, seed=0)
        assert float(found.proportions_N.double().sum()) == pytest.approx(1, abs=1e-6)
        assert bool((found.proportions_N > 0).all())
        assert found.proportions_N.tolist() == sorted(found.proportions_N.tolist(), reverse=True)
        assert found.prototypes_ND.dtype == found.proportions_N.dtype == torch.float32

    @pytest.mark.parametrize("mini_batch", [False, True])
    def test_well_separated_blobs_are_recovered(
        self, monkeypatch: pytest.MonkeyPatch, mini_batch: bool
    ) -> None:
        if mini_batch:
            monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 100)
        rows, centre_of = make_blobs()
        found = build_dictionary(rows, num_prototypes=4, seed=3)
        assert found.proportions_N.tolist() == pytest.approx([0.5, 0.25, 0.2, 0.05])
        torch.testing.assert_close(found.prototypes_ND, CENTRES[[1, 3, 0, 2]], atol=0.3, rtol=0)
        rank = torch.tensor([2, 0, 3, 1])  # of each centre by its size
        assert found.assignments_M is not None
        assert torch.equal(found.assignments_M, rank[centre_of])

    def test_duplicates_give_fewer_prototypes(self) -> None:
        rows = torch.tensor([[0.0, 1.0]] * 30 + [[5.0, 5.0]] * 10)
        found = build_dictionary(rows, num_prototypes=6, seed=0)
        assert len(found) == 2
        assert found.prototypes_ND.tolist() == [[0.0, 1.0], [5.0, 5.0]]
        assert found.proportions_N.tolist() == [0.75, 0.25]
        assert found.spread_N.tolist() == [0.0, 0.0]

    def test_one_point_many_times(self) -> None:
        found = build_dictionary(torch.ones(50, 3), num_prototypes=5, seed=0)
        assert len(found) == 1 and found.proportions_N.tolist() == [1.0]

    def test_one_prototype_is_the_mean(self) -> None:
        rows = make_rows()
        found = build_dictionary(rows, num_prototypes=1, seed=0)
        torch.testing.assert_close(found.prototypes_ND[0], rows.mean(dim=0))
        assert found.proportions_N.tolist() == [1.0]

    def test_as_many_prototypes_as_rows(self) -> None:
        found = build_dictionary(make_rows(6), num_prototypes=6, seed=0)
        assert len(found) == 6 and found.proportions_N.tolist() == pytest.approx([1 / 6] * 6)

    def test_same_seed_same_result_whatever_the_global_streams(self) -> None:
        import numpy as np

        rows = make_rows()
        one = build_dictionary(rows, num_prototypes=9, seed=2**40 + 5)
        torch.manual_seed(77), np.random.seed(77)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        two = build_dictionary(rows, num_prototypes=9, seed=2**40 + 5)
        assert_equal(one, two)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]

    def test_the_seed_matters(self) -> None:
        found = [build_dictionary(make_rows(), num_prototypes=9, seed=s) for s in range(4)]
        assert len({tuple(f.prototypes_ND.flatten().tolist()) for f in found}) > 1

    def test_fewer_rows_than_prototypes_is_a_user_error(self) -> None:
        with pytest.raises(UserError, match="9 clusters of 8 predictions") as caught:
            build_dictionary(make_rows(8), num_prototypes=9, seed=0)
        assert caught.value.exit_code == 2
        assert caught.value.subject == "dictionary.num_prototypes"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_predictions_that_are_not_finite(self, value: float) -> None:
        rows = make_rows()
        rows[17, 2] = value
        with pytest.raises(NumericError) as caught:
            build_dictionary(rows, num_prototypes=3, seed=0)
        assert caught.value.exit_code == 5

    def test_predictions_are_left_as_they_are(self) -> None:
        rows = make_rows()
        before = rows.clone()
        build_dictionary(rows, num_prototypes=3, seed=0)
        assert torch.equal(rows, before)

    def test_batches_give_the_bits_of_the_whole(self) -> None:
        rows = make_rows()
        found = build_dictionary_by_batches(
            lambda: rows.split(7), num_rows=len(rows), num_prototypes=6, seed=4
        )
        assert_equal(found, build_dictionary(rows, num_prototypes=6, seed=4))

    def test_no_batch_is_asked_for_before_the_rows_are_known_to_suffice(self) -> None:
        def batches() -> list[Tensor]:
            pytest.fail("predictions cost time")

        with pytest.raises(UserError):
            build_dictionary_by_batches(batches, num_rows=8, num_prototypes=9, seed=0)


class TestDegenerateDictionaries:
    """What the compensation makes of a dictionary that is hardly one."""

    @pytest.mark.parametrize(("scale", "factor"), [(1.0, 1.0), (2.5, 2.5), ("N", 1.0)])
    def test_one_cluster_has_lambda_1_and_adds_the_scaled_mean(
        self, scale: float | Scale, factor: float
    ) -> None:
        rows = make_rows(dimension=3)
        found = build_dictionary(rows, num_prototypes=1, seed=0)
        module = Compensation(found.prototypes_ND, found.proportions_N, num_classes=3, scale=scale)
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
        assert module.attention(logits).tolist() == [[1.0]] * 5
        expected = factor * rows.double().mean(dim=0).float().expand(5, 3)
        torch.testing.assert_close(module.prior(logits), expected)
        torch.testing.assert_close(module(logits), logits + expected)

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_duplicates_make_a_smaller_dictionary_that_works(self, fusion: Fusion) -> None:
        rows = torch.tensor([[0.0, 1.0, 2.0]] * 30 + [[5.0, 5.0, 5.0]] * 10)
        found = build_dictionary(rows, num_prototypes=10, seed=0)
        assert len(found) == 2 and float(found.proportions_N.sum()) == 1.0
        module = Compensation(
            found.prototypes_ND, found.proportions_N, num_classes=3, fusion=fusion, scale="N"
        )
        logits = torch.zeros(4, 3, requires_grad=True)
        module(logits).sum().backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())

    def test_a_pool_of_one_image_repeated(self) -> None:
        found = build_dictionary(torch.full((64, 3), 2.0), num_prototypes=10, seed=0)
        assert found.prototypes_ND.tolist() == [[2.0, 2.0, 2.0]]
        assert found.proportions_N.tolist() == [1.0] and found.spread_N.tolist() == [0.0]


class TestDictionaryHash:
    def test_is_over_the_bytes_of_prototypes_and_proportions(self) -> None:
        prototypes, proportions = (
            torch.tensor([[1.0, -2.0], [0.5, 3.0]]),
            torch.tensor([0.75, 0.25]),
        )
        content = struct.pack("<6f", 1.0, -2.0, 0.5, 3.0, 0.75, 0.25)
        assert dictionary_hash(prototypes, proportions) == hashlib.sha256(content).hexdigest()

    def test_does_not_depend_on_how_values_lie_in_memory(self) -> None:
        prototypes = make_rows(4, 6)
        proportions = torch.full((4,), 0.25)
        transposed = prototypes.T.contiguous().T
        assert not transposed.is_contiguous()
        assert dictionary_hash(transposed, proportions) == dictionary_hash(prototypes, proportions)
        double = dictionary_hash(prototypes.double(), proportions.double())
        assert double == dictionary_hash(prototypes, proportions)

    def test_equal_pools_have_equal_dictionaries_and_others_have_not(self) -> None:
        rows = make_rows()
        shuffled = rows.clone()
        shuffled[0, 0] += 1
        hashes = [
            dictionary_hash(found.prototypes_ND, found.proportions_N)
            for found in (
                build_dictionary(values, num_prototypes=4, seed=0)
                for values in (rows, rows.clone(), shuffled)
            )
        ]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_every_value_counts(self) -> None:
        prototypes, proportions = make_rows(2, 2), torch.tensor([0.75, 0.25])
        expected = dictionary_hash(prototypes, proportions)
        assert dictionary_hash(prototypes, proportions.flip(0)) != expected
        assert dictionary_hash(prototypes.flip(0), proportions) != expected


class TestConfounderDictionary:
    def test_proportions_must_be_a_distribution(self) -> None:
        prototypes, spread = torch.zeros(2, 3), torch.zeros(2)
        for bad in ([1.0, 0.0], [0.5, 0.4], [1.5, -0.5]):
            with pytest.raises(ValueError, match="positive and sum to 1"):
                ConfounderDictionary(prototypes, torch.tensor(bad), spread)
        with pytest.raises(ValueError, match="do not fit"):
            ConfounderDictionary(prototypes, torch.full((3,), 1 / 3), spread)
        assert len(ConfounderDictionary(prototypes, torch.tensor([0.25, 0.75]), spread)) == 2

    def test_many_small_proportions_are_accepted(self) -> None:
        """Single precision must not make a true distribution look like none."""
        counts = torch.randint(1, 9, (3000,), generator=torch.Generator().manual_seed(0))
        proportions = (counts.double() / counts.sum()).float()
        found = ConfounderDictionary(torch.zeros(3000, 2), proportions, torch.zeros(3000))
        assert len(found) == 3000


def image_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(size, 1, 8, 8, generator=generator) for size in (4, 3)]


class TestPredict:
    @pytest.mark.parametrize("space", ["logits", "probabilities", "features"])
    def test_equals_the_model_image_by_image(
        self, tiny_model: Callable[[int], PixelModel], space: confounder.Space
    ) -> None:
        model = tiny_model(0).eval()
        found, classes = predict(model, iter(image_batches()), space=space)
        expected, expected_classes = [], []
        for image in torch.cat(image_batches()):
            logits, features = model(image[None])
            expected_classes.append(int(logits[0].argmax()))
            exponents = logits[0].exp()
            choices = {
                "logits": logits[0],
                "probabilities": exponents / exponents.sum(),
                "features": features[0],
            }
            expected.append(choices[space].detach())
        torch.testing.assert_close(found, torch.stack(expected))
        assert classes.tolist() == expected_classes
        assert found.shape == (7, 6 if space == "features" else 3)
        assert not found.requires_grad


class TestPoolPredictions:
    @pytest.mark.parametrize("space", ["logits", "features"])
    def test_every_pass_is_what_predict_returns(
        self, tiny_model: Callable[[int], PixelModel], space: confounder.Space
    ) -> None:
        model = tiny_model(0).eval()
        passes = PoolPredictions(model, image_batches, num_rows=7, space=space)
        expected, classes = predict(model, iter(image_batches()), space=space)
        for _ in range(2):
            assert torch.equal(torch.cat(list(passes())), expected)
            assert torch.equal(passes.classes_M, classes)
        assert not next(iter(passes())).requires_grad

    def test_a_pool_in_many_passes_gives_the_dictionary_of_its_predictions(
        self, tiny_model: Callable[[int], PixelModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_model(0).eval()
        images = torch.rand(90, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        monkeypatch.setattr(clustering, "MINI_BATCH_ROWS", 60)
        passes = PoolPredictions(model, lambda: images.split(25), num_rows=90, space="features")
        found = build_dictionary_by_batches(passes, num_rows=90, num_prototypes=3, seed=0)
        predictions, classes = predict(model, images.split(25), space="features")
        assert_equal(found, build_dictionary(predictions, num_prototypes=3, seed=0))
        assert torch.equal(passes.classes_M, classes)
