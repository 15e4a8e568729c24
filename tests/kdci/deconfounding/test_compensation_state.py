"""What a compensation module starts with, what it takes another dictionary for, what it saves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdci.deconfounding.compensation import (
    Compensation,
    Fusion,
    Proportions,
    Scale,
)
from kdci.store.artifacts import save_tensors
from tests.kdci.deconfounding._modules import (
    K,
    dot,
    make_dictionary,
    make_logits,
    make_module,
    naive,
)


class TestInitialisation:
    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_zero_starts_with_even_lambda(self, fusion: str) -> None:
        module, logits = make_module(fusion=fusion, initialisation="zero", scale="N"), make_logits()
        assert torch.equal(module.attention(logits), torch.full((7, 5), 1 / 5))
        prototypes, proportions = make_dictionary()
        mean = (prototypes * proportions[:, None]).sum(dim=0)
        torch.testing.assert_close(module.prior(logits), mean.expand(7, K))  # N / N = 1

    @pytest.mark.parametrize("dimension", [2, K, 9])
    def test_zero_adds_nothing_to_a_residual(self, dimension: int) -> None:
        module = make_module(fusion="residual", dimension=dimension, initialisation="zero")
        assert torch.equal(module(make_logits()), make_logits())

    def test_zero_changes_nothing_else(self) -> None:
        normal = make_module(fusion="linear").state_dict()
        zero = make_module(fusion="linear", initialisation="zero").state_dict()
        differing = {
            name
            for name, value in normal.items()
            if name != "_extra_state" and not torch.equal(value, zero[name])
        }
        assert differing == {"w_t.weight", "w_g.weight"}
        assert not zero["w_t.weight"].any() and not zero["w_g.weight"].any()

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_zero_is_no_dead_end(self, fusion: str) -> None:
        """W_g moves first, W_t after it, then W_q and W_k."""
        module = make_module(fusion=fusion, initialisation="zero", scale="N")
        logits = make_logits()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            module(logits).log_softmax(dim=1)[:, 0].mean().neg().backward()
            optimizer.step()
        for weight in module.parameters():
            assert weight.grad is not None and bool(weight.grad.any())

    def test_normal_weights_have_the_deviation_of_xavier(self) -> None:
        module = make_module(fusion="linear", hidden_dim=4000, dimension=50)
        for layer in (module.w_q, module.w_k, module.w_t):
            deviation = math.sqrt(2 / (layer.in_features + layer.out_features))
            weights = layer.weight.detach()
            assert float(weights.std()) == pytest.approx(deviation, rel=0.05)
            assert float(weights.mean()) == pytest.approx(0, abs=0.1 * deviation)


class TestOtherDictionary:
    @pytest.mark.parametrize("scale", [2.0, "N", "shift"])
    @pytest.mark.parametrize("proportions", ["cluster", "uniform", "none", "centred"])
    def test_another_z_is_what_a_module_built_with_it_has(
        self, proportions: Proportions, scale: float | Scale
    ) -> None:
        changes = {"fusion": "residual", "dimension": 9, "proportions": proportions, "scale": scale}
        module, logits = make_module(**changes), make_logits()
        prototypes, shares = make_dictionary(num_prototypes=8, dimension=9)
        module.set_dictionary(prototypes, shares)
        options = {key: value for key, value in changes.items() if key != "dimension"}
        built = Compensation(prototypes, shares, num_classes=K, hidden_dim=6, seed=11, **options)
        assert torch.equal(module(logits), built(logits))
        assert module.attention(logits).shape == (7, 8)
        assert module.shape()["num_prototypes"] == 8
        expected = naive(module, logits, module.factors_N.tolist(), float(module.scale))
        torch.testing.assert_close(
            module(logits).detach(), torch.tensor(expected[2]), atol=1e-5, rtol=1e-5
        )

    def test_it_is_copied_and_the_weights_stay(self) -> None:
        module = make_module()
        weights = [weight.clone() for weight in module.parameters()]
        identities = [id(weight) for weight in module.parameters()]
        prototypes, shares = make_dictionary(num_prototypes=3)
        module.set_dictionary(prototypes, shares)
        before = module(make_logits())
        prototypes.zero_()
        shares.zero_()
        assert torch.equal(module(make_logits()), before)
        assert [id(weight) for weight in module.parameters()] == identities  # the optimiser's
        for weight, old in zip(module.parameters(), weights, strict=True):
            assert torch.equal(weight, old)
        assert not any(buffer.requires_grad for buffer in module.buffers())

    def test_random_prototypes_are_drawn_for_the_new_ones(self) -> None:
        module = make_module(prototypes="random")
        stream = module.get_extra_state()
        prototypes, shares = make_dictionary(num_prototypes=200)
        module.set_dictionary(100 + prototypes, shares)
        assert module.prototypes_ND.shape == (200, K)
        assert not torch.equal(module.prototypes_ND, 100 + prototypes)
        assert float(module.prototypes_ND.mean()) == pytest.approx(100, abs=1)
        assert torch.equal(module.get_extra_state(), stream)

    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    @pytest.mark.parametrize("num_prototypes", [1, 3, 8])
    def test_a_state_brings_its_own_number_of_prototypes(
        self, tmp_path: Path, fusion: Fusion, num_prototypes: int
    ) -> None:
        module, logits = make_module(fusion=fusion, scale="N"), make_logits()
        module.set_dictionary(*make_dictionary(num_prototypes=num_prototypes))
        save_tensors(tmp_path / "m.safetensors", module.state_dict())
        resumed = make_module(fusion=fusion, scale="N", seed=77)
        assert len(resumed.prototypes_ND) == 5
        resumed.load_state_dict(load_file(tmp_path / "m.safetensors"))
        assert len(resumed.prototypes_ND) == num_prototypes
        assert torch.equal(resumed(logits), module(logits))

    def test_it_is_found_inside_another_module_too(self) -> None:
        module = make_module()
        module.set_dictionary(*make_dictionary(num_prototypes=2))
        outer = torch.nn.ModuleDict({"phi": make_module(seed=77)})
        outer.load_state_dict(torch.nn.ModuleDict({"phi": module}).state_dict())
        assert torch.equal(outer["phi"](make_logits()), module(make_logits()))

    def test_a_state_of_another_dimension_is_refused(self) -> None:
        state = make_module(fusion="residual", dimension=9).state_dict()
        with pytest.raises(RuntimeError, match="size mismatch for prototypes_ND"):
            make_module(fusion="residual", dimension=8).load_state_dict(state)


class TestState:
    @pytest.mark.parametrize("fusion", ["identity", "residual", "linear"])
    def test_shape_and_state_rebuild_an_equal_module(self, tmp_path: Path, fusion: str) -> None:
        module = make_module(fusion=fusion, scale="N", proportions="centred", prototypes="random")
        save_tensors(tmp_path / "m.safetensors", module.state_dict())
        shape = module.shape()
        blank = Compensation(
            torch.zeros(shape["num_prototypes"], shape["dimension"]),
            torch.full((shape["num_prototypes"],), 1 / shape["num_prototypes"]),
            num_classes=K,
            fusion=shape["fusion"],
            weights=shape["weights"],
            hidden_dim=shape["hidden_dim"],
        )
        blank.load_state_dict(load_file(tmp_path / "m.safetensors"))
        assert torch.equal(blank(make_logits()), module(make_logits()))

    def test_the_random_stream_is_taken_up_where_it_was_left(self, tmp_path: Path) -> None:
        module, logits = make_module(weights="random"), make_logits()
        module(logits)
        save_tensors(tmp_path / "m.safetensors", module.state_dict())
        expected = [module(logits), module(logits)]
        resumed = make_module(weights="random", seed=4)
        resumed.load_state_dict(load_file(tmp_path / "m.safetensors"))
        for value in expected:
            assert torch.equal(resumed(logits), value)

    def test_describe_by_hand(self) -> None:
        module, logits = make_module(), make_logits()
        lambdas, priors = module.attention(logits), module.prior(logits)
        found = module.describe(logits)
        largest = [max(row) for row in lambdas.tolist()]
        norms = [math.sqrt(dot(row, row)) for row in priors.tolist()]
        assert found == {
            "lambda_max": pytest.approx(sum(largest) / 7),
            "prior_norm": pytest.approx(sum(norms) / 7),
        }
