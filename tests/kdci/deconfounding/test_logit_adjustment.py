from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.deconfounding.logit_adjustment import LogitAdjustment, log_prior

K = 4
PRIOR = torch.tensor([0.7, 0.2, 0.05, 0.05])


def make_logits(batch: int = 9) -> Tensor:
    return 3 * torch.randn(batch, K, generator=torch.Generator().manual_seed(0))


class TestLogPrior:
    def test_by_hand(self) -> None:
        """Counts 3, 1, 0, 2 and one more each: 4, 2, 1, 3 of 10; the absent class is finite."""
        got = log_prior(torch.tensor([0, 3, 0, 1, 0, 3]), 4)
        assert got.dtype == torch.float32
        assert got.tolist() == pytest.approx([math.log(p) for p in (0.4, 0.2, 0.1, 0.3)])

    def test_is_a_distribution_and_tends_to_the_proportions(self) -> None:
        classes = torch.arange(4).repeat_interleave(torch.tensor([70_000, 20_000, 10_000, 0]))
        prior = log_prior(classes, 4).exp()
        assert float(prior.sum()) == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(prior, torch.tensor([0.7, 0.2, 0.1, 1e-5]), atol=1e-4, rtol=0)
        assert float(prior[3]) == pytest.approx(1 / 100_004)

    def test_a_balanced_pool_has_an_even_prior(self) -> None:
        prior = log_prior(torch.arange(12) % 3, 3)
        assert prior.tolist() == pytest.approx([-math.log(3)] * 3)


class TestLogitAdjustment:
    @pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
    def test_adds_tau_log_pi(self, tau: float) -> None:
        module, logits = LogitAdjustment(PRIOR.log(), tau=tau), make_logits()
        expected = [
            [f + tau * math.log(p) for f, p in zip(row, PRIOR.tolist(), strict=True)]
            for row in logits.tolist()
        ]
        torch.testing.assert_close(module(logits), torch.tensor(expected))
        assert module.describe(logits) == {}

    def test_an_even_prior_changes_no_probability(self) -> None:
        module, logits = LogitAdjustment(torch.full((K,), 1 / K).log(), tau=1.5), make_logits()
        torch.testing.assert_close(module(logits).softmax(dim=1), logits.softmax(dim=1))

    def test_cross_entropy_is_that_of_probabilities_reweighted_by_the_prior(self) -> None:
        """p_y = pi_y exp f_y / sum_k pi_k exp f_k: Eq. (10) of the paper."""
        logits, labels = make_logits(), torch.arange(9) % K
        got = F.cross_entropy(LogitAdjustment(PRIOR.log())(logits), labels, reduction="none")
        for cost, row, label in zip(got.tolist(), logits.tolist(), labels.tolist(), strict=True):
            weighted = [p * math.exp(f) for p, f in zip(PRIOR.tolist(), row, strict=True)]
            assert cost == pytest.approx(-math.log(weighted[label] / sum(weighted)), abs=1e-5)

    def test_training_on_the_adjusted_logits_makes_the_raw_ones_balanced(self) -> None:
        """For x of 3 values: the optimum of f is log p(x | y), which has no prior in it."""
        likelihood_XK = torch.tensor(
            [[0.6, 0.1, 0.3, 0.2], [0.3, 0.1, 0.5, 0.2], [0.1, 0.8, 0.2, 0.6]]
        )
        joint_XK = likelihood_XK * PRIOR
        module = LogitAdjustment(PRIOR.log())

        def gradient(logits_XK: Tensor) -> Tensor:
            leaf = logits_XK.clone().requires_grad_()
            loss = -(joint_XK * module(leaf).log_softmax(dim=1)).sum()
            return torch.autograd.grad(loss, leaf)[0]

        balanced = likelihood_XK.log()
        torch.testing.assert_close(gradient(balanced), torch.zeros(3, K), atol=1e-6, rtol=0)
        assert float(gradient(joint_XK.log()).abs().max()) > 0.05

    def test_it_is_no_parameter_and_owns_its_prior(self) -> None:
        prior = PRIOR.log()
        module = LogitAdjustment(prior)
        prior.zero_()
        assert list(module.parameters()) == []
        assert torch.equal(module.log_prior_K, PRIOR.log())
        logits = make_logits().requires_grad_()
        module(logits).sum().backward()
        assert torch.equal(logits.grad, torch.ones(9, K))  # type: ignore[arg-type]

    def test_the_prior_is_in_the_state(self) -> None:
        other = LogitAdjustment(torch.zeros(K))
        other.load_state_dict(LogitAdjustment(PRIOR.log()).state_dict())
        assert torch.equal(other(make_logits()), LogitAdjustment(PRIOR.log())(make_logits()))
