from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdci.training.losses import divergence, patch_loss, prediction_entropies

THREE_TO_ONE = torch.tensor([[math.log(3.0), 0.0]])
"""Logits of the probabilities (3/4, 1/4)."""


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


class TestPredictionEntropies:
    def test_naive_loop(self) -> None:
        logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
        expected = [-sum(p * math.log(p) for p in softmax(row)) for row in logits.tolist()]
        assert prediction_entropies(logits).tolist() == pytest.approx(expected, abs=1e-12)

    def test_hand_computed(self) -> None:
        logits = torch.cat([THREE_TO_ONE, torch.zeros(1, 2)])
        # -(3/4 ln 3/4 + 1/4 ln 1/4), and ln 2.
        assert prediction_entropies(logits).tolist() == pytest.approx([0.5623351, 0.6931472])

    def test_a_probability_of_zero_adds_nothing(self) -> None:
        logits = torch.tensor([[1e4, 0.0, 0.0], [1e4, 1e4, 0.0]], requires_grad=True)
        # What goes wrong otherwise: 0 log 0.
        assert bool((softmaxed := logits.softmax(1)).eq(0).any())
        assert bool((softmaxed * softmaxed.log()).sum(1).isnan().all())
        entropies = prediction_entropies(logits)
        assert entropies.tolist() == pytest.approx([0.0, math.log(2)])
        entropies.sum().backward()
        assert logits.grad is not None and bool(logits.grad.isfinite().all())


class TestDivergence:
    def test_naive_loop(self) -> None:
        generator = torch.Generator().manual_seed(1)
        student, teacher = 2 * torch.randn(2, 7, 4, generator=generator).double()
        # Rows on which the two disagree count like all others.
        assert bool((student.argmax(1) != teacher.argmax(1)).any())
        total = 0.0
        for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
            for s, t in zip(softmax(s_row), softmax(t_row), strict=True):
                total += t * math.log(t / s)
        assert float(divergence(student, teacher)) == pytest.approx(total / 7, abs=1e-12)

    def test_hand_computed(self) -> None:
        # 3/4 ln 3/2 + 1/4 ln 1/2 over the even student; the mean with an equal row is half.
        even = torch.zeros(1, 2)
        assert float(divergence(even, THREE_TO_ONE)) == pytest.approx(0.1308120)
        # The other way round: 1/2 ln 2/3 + 1/2 ln 2.
        assert float(divergence(THREE_TO_ONE, even)) == pytest.approx(0.1438410)
        both = torch.cat([THREE_TO_ONE, even]), torch.cat([THREE_TO_ONE, THREE_TO_ONE])
        assert float(divergence(*both)) == pytest.approx(0.1308120 / 2)

    def test_gradient_flows_through_both_nets(self) -> None:
        leaves = (torch.zeros(2, 3, dtype=torch.double), torch.eye(2, 3, dtype=torch.double))
        for leaf in leaves:
            leaf.requires_grad_()
        assert torch.autograd.gradcheck(divergence, leaves)
        for gradient in torch.autograd.grad(divergence(*leaves), leaves):
            assert float(gradient.abs().min()) > 0

    def test_extreme_logits_stay_finite(self) -> None:
        student = torch.tensor([[1e4, 0.0]], requires_grad=True)
        loss = divergence(student, torch.tensor([[0.0, 1e4]]))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(1e4)
        assert student.grad is not None and bool(student.grad.isfinite().all())


class TestPatchLoss:
    @pytest.mark.parametrize("real", [True, False])
    def test_naive_loop(self, real: bool) -> None:
        logits = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(2)).double()
        total = 0.0
        for logit in logits.flatten().tolist():
            probability = 1 / (1 + math.exp(-logit))
            total -= math.log(probability if real else 1 - probability)
        assert float(patch_loss(logits, real=real)) == pytest.approx(total / 3, abs=1e-12)

    def test_hand_computed_sum_over_patches_mean_over_images(self) -> None:
        undecided = torch.zeros(2, 1, 8, 8)
        for real in (True, False):
            assert float(patch_loss(undecided, real=real)) == pytest.approx(64 * math.log(2))
        # Logit ln 3 is a probability of 3/4.
        sure = torch.full((1, 1, 1, 1), math.log(3.0))
        assert float(patch_loss(sure, real=True)) == pytest.approx(math.log(4 / 3))
        assert float(patch_loss(sure, real=False)) == pytest.approx(math.log(4))

    def test_extreme_logits_stay_finite(self) -> None:
        logits: Tensor = torch.full((1, 1, 1, 1), -1e4, requires_grad=True)
        loss = patch_loss(logits, real=True)
        loss.backward()
        assert float(loss.detach()) == 1e4
        assert logits.grad is not None and float(logits.grad) == -1.0
