from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdci import confounder
from kdci.confounder import ConfounderDictionary, build_dictionary, predict
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
            monkeypatch.setattr(confounder, "MINI_BATCH_ROWS", 100)
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


class TestPredict:
    def batches(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(2)
        return [torch.rand(size, 1, 8, 8, generator=generator) for size in (4, 3)]

    @pytest.mark.parametrize("space", ["logits", "probabilities", "features"])
    def test_equals_the_model_image_by_image(
        self, tiny_model: Callable[[int], PixelModel], space: confounder.Space
    ) -> None:
        model = tiny_model(0).eval()
        found, classes = predict(model, iter(self.batches()), space=space)
        expected, expected_classes = [], []
        for image in torch.cat(self.batches()):
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
