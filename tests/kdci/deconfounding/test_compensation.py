from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdci.deconfounding.compensation import (
    Compensation,
    Fusion,
    Proportions,
    Scale,
    prior_information,
    prior_scale,
    proportion_factors,
    random_prototypes,
)
from kdci.errors import UserError
from tests.kdci.deconfounding._modules import (
    K,
    make_dictionary,
    make_logits,
    make_module,
    naive,
)


class TestEquations:
    @pytest.mark.parametrize(
        ("fusion", "dimension"),
        [("identity", K), ("residual", K), ("residual", 9), ("linear", 9)],
    )
    def test_lambda_prior_and_phi_equal_naive_loops(self, fusion: str, dimension: int) -> None:
        module, logits = make_module(fusion=fusion, dimension=dimension, scale=1.5), make_logits()
        _, proportions = make_dictionary(dimension=dimension)
        expected = naive(module, logits, proportions.double().tolist(), 1.5)
        got = module.attention(logits), module.prior(logits), module(logits)
        for value, rows in zip(got, expected, strict=True):
            torch.testing.assert_close(value.detach(), torch.tensor(rows), atol=1e-5, rtol=1e-5)
        assert module(logits).shape == (7, K)

    def test_an_example_by_hand(self) -> None:
        """Scores 0 and 2 tanh(1); lambda 0.17899 and 0.82101; F = lambda_i P_i on each axis."""
        module = Compensation(torch.eye(2), torch.tensor([0.75, 0.25]), num_classes=2, hidden_dim=1)
        with torch.no_grad():
            module.w_q.weight.copy_(torch.tensor([[1.0, 0.0]]))
            module.w_k.weight.copy_(torch.tensor([[0.0, 1.0]]))
            module.w_t.weight.copy_(torch.tensor([[2.0]]))
        logits = torch.tensor([[0.0, 5.0]])
        torch.testing.assert_close(module.scores(logits), torch.tensor([[0.0, 1.5231884]]))
        torch.testing.assert_close(module.attention(logits), torch.tensor([[0.1789929, 0.8210071]]))
        torch.testing.assert_close(module(logits), torch.tensor([[0.1342447, 5.2052518]]))

    def test_prior_information_is_the_weighted_sum(self) -> None:
        weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        prototypes = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
        got = prior_information(weights, prototypes, torch.tensor([0.2, 0.8]))
        torch.testing.assert_close(got, torch.tensor([[4.1, 8.2, 12.3], [0.2, 0.4, 0.6]]))

    @pytest.mark.parametrize("weights", ["learned", "random"])
    def test_lambda_is_a_distribution_over_the_prototypes(self, weights: str) -> None:
        lambdas = make_module(weights=weights).attention(make_logits(50))
        assert lambdas.shape == (50, 5) and bool((lambdas > 0).all())
        torch.testing.assert_close(lambdas.sum(dim=1), torch.ones(50))

    def test_large_logits_stay_finite(self) -> None:
        assert bool(make_module()(1e6 * make_logits()).isfinite().all())

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_the_order_of_the_prototypes_does_not_matter(self, fusion: Fusion) -> None:
        """lambda follows the prototypes; F(z) and phi are sums over them."""
        prototypes, proportions = make_dictionary()
        order, logits = torch.tensor([3, 0, 4, 2, 1]), make_logits()
        plain, permuted = (
            Compensation(z, p, num_classes=K, fusion=fusion, scale="N", seed=11)
            for z, p in ((prototypes, proportions), (prototypes[order], proportions[order]))
        )
        torch.testing.assert_close(permuted.attention(logits), plain.attention(logits)[:, order])
        torch.testing.assert_close(permuted.prior(logits), plain.prior(logits))
        torch.testing.assert_close(permuted(logits), plain(logits))
        # Prototypes that are given each other's proportions are another dictionary.
        mixed = Compensation(
            prototypes, proportions[order], num_classes=K, fusion=fusion, scale="N", seed=11
        )
        assert not torch.allclose(mixed(logits), plain(logits), atol=1e-3)

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_samples_do_not_see_each_other(self, fusion: str) -> None:
        module, logits = make_module(fusion=fusion), make_logits()
        alone = torch.cat([module(row) for row in logits.split(1)])
        torch.testing.assert_close(module(logits), alone)

    @pytest.mark.parametrize("scale", [1.0, "N", "shift"])
    def test_one_cluster_adds_its_prototype_whatever_the_student_says(
        self, scale: float | Scale
    ) -> None:
        """lambda = P = 1, so F(z) is z; one cluster alone has no shift."""
        z = torch.tensor([[1.0, -2.0, 0.5, 4.0]])
        module = Compensation(z, torch.ones(1), num_classes=K, scale=scale)
        logits = make_logits()
        assert torch.equal(module.attention(logits), torch.ones(7, 1))
        added = torch.zeros(1, K) if scale == "shift" else z
        torch.testing.assert_close(module(logits), logits + added)

    def test_equal_prototypes_get_equal_weights(self) -> None:
        prototypes = torch.tensor([[1.0, 2.0, 0.0, 0.0]]).repeat(3, 1)
        module = Compensation(prototypes, torch.full((3,), 1 / 3), num_classes=K)
        expected = torch.full((7, 3), 1 / 3)
        torch.testing.assert_close(module.attention(make_logits()).detach(), expected)


class TestScaleAndFusion:
    def test_scale_n_makes_up_for_the_number_of_prototypes(self) -> None:
        one, five, scaled = (make_module(scale=s).prior(make_logits()) for s in (1.0, 5.0, "N"))
        torch.testing.assert_close(scaled, 5 * one)
        assert torch.equal(scaled, five)

    def test_scales_by_hand(self) -> None:
        """Total variation of 0.5, 0.25, 0.125 twice from 0.25 each: (0.25 + 2 * 0.125) / 2."""
        proportions = torch.tensor([0.5, 0.25, 0.125, 0.125])
        assert prior_scale(proportions, "N") == 4.0
        assert prior_scale(proportions, "shift") == 4 * 0.25
        assert prior_scale(proportions, 2.5) == 2.5 and prior_scale(proportions, 0) == 0.0
        for even in (1, 2, 8):
            assert prior_scale(torch.full((even,), 1 / even), "shift") == 0.0
        nearly_one = torch.tensor([0.997, 0.001, 0.001, 0.001])
        assert prior_scale(nearly_one, "shift") == pytest.approx(4 * 0.747)

    @pytest.mark.parametrize("scale", [0.5, "N", "shift"])
    def test_the_scale_is_a_factor_on_the_prior(self, scale: float | Scale) -> None:
        _, proportions = make_dictionary()
        one, scaled = make_module(scale=1.0), make_module(scale=scale)
        factors = {
            0.5: 0.5,
            "N": 5.0,
            "shift": 5 * sum(abs(p - 0.2) for p in proportions.tolist()) / 2,
        }
        logits = make_logits()
        torch.testing.assert_close(scaled.prior(logits), factors[scale] * one.prior(logits))
        assert torch.equal(scaled.attention(logits), one.attention(logits))

    def test_a_balanced_pool_gets_no_compensation_by_its_shift(self) -> None:
        prototypes, _ = make_dictionary(num_prototypes=4)
        module = Compensation(prototypes, torch.full((4,), 0.25), num_classes=K, scale="shift")
        assert torch.equal(module(make_logits()), make_logits())

    def test_identity_needs_prototypes_of_k_values(self) -> None:
        with pytest.raises(UserError, match="needs prototypes of 4 values, these have 9") as caught:
            make_module(dimension=9)
        assert caught.value.exit_code == 2 and caught.value.subject == "compensation.fusion"

    @pytest.mark.parametrize("fusion", ["residual", "linear"])
    @pytest.mark.parametrize("dimension", [2, K, 9])
    def test_projections_take_any_dimension(self, fusion: str, dimension: int) -> None:
        module = make_module(fusion=fusion, dimension=dimension)
        assert module(make_logits()).shape == (7, K)
        assert module.prior(make_logits()).shape == (7, dimension)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        expected = {
            "w_q.weight": (6, K),
            "w_k.weight": (6, dimension),
            "w_t.weight": (1, 6),
            "w_g.weight": (K, dimension),
        }
        assert shapes == expected | ({"w_h.weight": (K, K)} if fusion == "linear" else {})

    def test_fusions_start_from_f_without_a_prior(self) -> None:
        """F = 0 leaves f alone, but for the free W_h."""
        zero, proportions = torch.zeros(3, K), torch.full((3,), 1 / 3)
        logits = make_logits()
        for fusion in ("identity", "residual"):
            module = Compensation(zero, proportions, num_classes=K, fusion=fusion)
            assert torch.equal(module(logits), logits)
        linear = Compensation(zero, proportions, num_classes=K, fusion="linear")
        assert not torch.allclose(linear(logits), logits)

    @pytest.mark.parametrize(
        "name", ["fusion", "weights", "prototypes", "proportions", "initialisation"]
    )
    def test_unknown_choices_are_misuse(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"unknown {name} 'other'"):
            changes: dict[str, Any] = {name: "other"}
            make_module(**changes)


class TestAblations:
    def uniform(self, proportions: Proportions) -> Compensation:
        prototypes, _ = make_dictionary()
        uniform = torch.full((5,), 1 / 5)
        return Compensation(prototypes, uniform, num_classes=K, proportions=proportions, seed=1)

    def test_factors_by_hand(self) -> None:
        proportions = torch.tensor([0.5, 0.25, 0.125, 0.125])
        expected: dict[Proportions, list[float]] = {
            "cluster": [0.5, 0.25, 0.125, 0.125],
            "uniform": [0.25] * 4,
            "none": [1.0] * 4,
            "centred": [0.25, 0.0, -0.125, -0.125],
        }
        for mode, factors in expected.items():
            assert proportion_factors(proportions, mode).tolist() == factors

    def test_on_a_balanced_pool_uniform_is_cluster_and_centred_adds_nothing(self) -> None:
        logits = make_logits()
        cluster = self.uniform("cluster")
        assert torch.equal(self.uniform("uniform")(logits), cluster(logits))
        assert torch.equal(self.uniform("centred")(logits), logits)
        torch.testing.assert_close(self.uniform("none").prior(logits), 5 * cluster.prior(logits))

    def test_centred_is_cluster_less_uniform(self) -> None:
        cluster, uniform, centred = (
            make_module(proportions=mode).prior(make_logits())
            for mode in ("cluster", "uniform", "centred")
        )
        torch.testing.assert_close(centred, cluster - uniform)

    @pytest.mark.parametrize(
        ("ablation", "changed"),
        [
            ({"weights": "random"}, set()),
            ({"prototypes": "random"}, {"prototypes_ND"}),
            ({"proportions": "uniform"}, {"factors_N"}),
            ({"proportions": "none"}, {"factors_N"}),
            ({"proportions": "centred"}, {"factors_N"}),
            ({"scale": 2.0}, {"scale"}),
        ],
    )
    def test_each_changes_its_own_factor_and_no_initial_weight(
        self, ablation: dict[str, Any], changed: set[str]
    ) -> None:
        plain, other = make_module().state_dict(), make_module(**ablation).state_dict()
        differing = {
            name
            for name, value in plain.items()
            if name != "_extra_state" and not torch.equal(value, other[name])
        }
        assert differing == changed

    def test_random_lambda_changes_lambda_alone(self) -> None:
        module, logits = make_module(weights="random"), make_logits()
        state = module.get_extra_state()
        lambdas = module.attention(logits)
        module.set_extra_state(state)
        _, proportions = make_dictionary()
        expected = torch.zeros(7, K)
        for b in range(7):
            for i in range(5):
                expected[b] += lambdas[b, i] * proportions[i] * module.prototypes_ND[i]
        torch.testing.assert_close(module.prior(logits), expected)

    def test_random_lambda_is_fresh_in_training_and_fixed_in_evaluation(self) -> None:
        module, logits = make_module(weights="random"), make_logits()
        assert not torch.equal(module.attention(logits), module.attention(logits))
        stream = module.get_extra_state()
        module.eval()
        assert torch.equal(module.attention(logits), module.attention(logits))
        assert torch.equal(module.get_extra_state(), stream)
        again = make_module(weights="random", seed=99).eval()
        assert torch.equal(again.attention(logits), module.attention(logits))

    def test_random_lambda_is_the_softmax_of_standard_normal_scores(self) -> None:
        module = make_module(weights="random")
        log_lambdas = module.attention(torch.zeros(20_000, K)).log()
        scores = log_lambdas[:, 0] - log_lambdas[:, 1]  # the difference of two such scores
        assert float(scores.mean()) == pytest.approx(0, abs=0.05)
        assert float(scores.std()) == pytest.approx(math.sqrt(2), rel=0.05)

    def test_random_prototypes_match_mean_and_scale(self) -> None:
        prototypes = 5 + 3 * torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
        found = random_prototypes(prototypes, generator=torch.Generator().manual_seed(1))
        assert found.shape == prototypes.shape and not torch.equal(found, prototypes)
        assert float(found.mean()) == pytest.approx(float(prototypes.mean()), abs=0.2)
        assert float(found.std()) == pytest.approx(float(prototypes.std()), rel=0.05)

    def test_no_description_draws_from_the_stream(self) -> None:
        module = make_module(weights="random")
        stream = module.get_extra_state()
        module.describe(make_logits())
        assert torch.equal(module.get_extra_state(), stream)


class TestWeights:
    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_come_from_a_generator_of_their_own(self, fusion: str) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        module = make_module(fusion=fusion, prototypes="random", weights="random")
        module(make_logits())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(12345)
        same = make_module(fusion=fusion, prototypes="random", weights="random")
        other = make_module(fusion=fusion, prototypes="random", weights="random", seed=12)
        for name, weight in module.named_parameters():
            assert torch.equal(weight, same.get_parameter(name))
            assert not torch.equal(weight, other.get_parameter(name))

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_gradient_reaches_the_student_and_every_weight(self, fusion: str) -> None:
        module, logits = make_module(fusion=fusion), make_logits().requires_grad_()
        (module(logits) ** 2).sum().backward()
        assert logits.grad is not None and bool(logits.grad.any())
        for weight in module.parameters():
            assert weight.grad is not None and bool(weight.grad.any())

    def test_gradient_through_lambda_equals_a_finite_difference(self) -> None:
        module = make_module().double()
        logits = make_logits(2).double().requires_grad_()
        assert torch.autograd.gradcheck(module, (logits,))

    def test_the_dictionary_is_no_parameter(self) -> None:
        prototypes, proportions = make_dictionary()
        module = Compensation(prototypes, proportions, num_classes=K)
        module(make_logits()).sum().backward()
        buffers = dict(module.named_buffers())
        assert {"prototypes_ND", "factors_N", "scale"} == set(buffers)
        for buffer in buffers.values():
            assert not buffer.requires_grad and buffer.grad is None
        assert {name for name, _ in module.named_parameters()} == {
            "w_q.weight",
            "w_k.weight",
            "w_t.weight",
        }
        with torch.no_grad():
            prototypes.zero_()
        assert bool(module.prototypes_ND.any())  # a copy: the caller's tensor is not ours

    def test_the_callers_proportions_are_copied_too(self) -> None:
        prototypes, proportions = make_dictionary()
        module = Compensation(prototypes, proportions, num_classes=K)
        before = module(make_logits())
        proportions.zero_()
        assert torch.equal(module(make_logits()), before)

    @pytest.mark.parametrize(
        ("fusion", "dimension"), [("identity", K), ("residual", 9), ("linear", 9)]
    )
    def test_every_gradient_equals_a_finite_difference(self, fusion: str, dimension: int) -> None:
        module = make_module(fusion=fusion, dimension=dimension, scale="N").double()
        names = [name for name, _ in module.named_parameters()]
        values = [weight.detach().clone().requires_grad_() for weight in module.parameters()]

        def phi(logits: Tensor, *weights: Tensor) -> Tensor:
            replaced = dict(zip(names, weights, strict=True))
            result: Tensor = torch.func.functional_call(module, replaced, (logits,))
            return result

        assert torch.autograd.gradcheck(phi, (make_logits(3).double().requires_grad_(), *values))

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_training_moves_every_weight_and_never_the_dictionary(self, fusion: str) -> None:
        module, logits = make_module(fusion=fusion, scale="N"), make_logits()
        buffers = {name: value.clone() for name, value in module.named_buffers()}
        weights = {name: value.clone() for name, value in module.named_parameters()}
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(logits).square().mean().backward()
            optimizer.step()
        assert {"w_t.weight", "w_q.weight", "w_k.weight"} <= set(weights)
        assert fusion == "identity" or "w_g.weight" in weights
        for name, value in module.named_parameters():
            assert not torch.equal(value, weights[name])
        assert set(buffers) == {"prototypes_ND", "factors_N", "scale"}
        for name, value in module.named_buffers():
            assert torch.equal(value, buffers[name]) and value.grad is None

    @pytest.mark.parametrize(
        ("ablation", "untrained"),
        [
            ({"weights": "random"}, {"w_q.weight", "w_k.weight", "w_t.weight"}),
            ({"prototypes": "random"}, set()),
            ({"proportions": "none"}, set()),
            ({"proportions": "centred"}, set()),
        ],
    )
    def test_gradient_in_the_ablations(self, ablation: dict[str, Any], untrained: set[str]) -> None:
        """Random lambda leaves the attention out; nothing else takes a weight's gradient."""
        module, logits = make_module(fusion="residual", **ablation), make_logits()
        logits.requires_grad_()
        module(logits).square().sum().backward()
        without = {name for name, weight in module.named_parameters() if weight.grad is None}
        assert without == untrained
        assert logits.grad is not None and bool(logits.grad.any())
