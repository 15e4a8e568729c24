from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdci.training.losses import competition

# (3/4, 1/4) against (1/4, 3/4): M = (1/2, 1/2), so JS = 3/4 ln 3/2 + 1/4 ln 1/2.
LEFT = torch.tensor([[math.log(3.0), 0.0]])
RIGHT = torch.tensor([[0.0, math.log(3.0)]])


def naive_competition(student: Tensor, teacher: Tensor, temperature: float, floor: float) -> float:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value / temperature) for value in row]
        return [power / sum(powers) for power in powers]

    def clamp(value: float) -> float:
        return min(max(value, floor), 1 - floor)

    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        for s, t in zip(softmax(s_row), softmax(t_row), strict=True):
            m = clamp((s + t) / 2)
            s, t = clamp(s), clamp(t)
            total += t * math.log(t / m) / 2 + s * math.log(s / m) / 2
    return -total / len(student)


@pytest.mark.parametrize("floor", [0.0, 0.01, 0.2])
def test_naive_loop(floor: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 5, 6, generator=generator).double() * 6
    expected = naive_competition(student, teacher, 3.0, floor)
    assert float(competition(student, teacher, 3.0, floor)) == pytest.approx(expected, abs=1e-12)
    # The floor is no detail: it changes the value.
    assert floor == 0 or abs(expected - naive_competition(student, teacher, 3.0, 0.0)) > 1e-4


def test_hand_computed() -> None:
    # With the divergences' arguments swapped, as in public code, it would be -0.1438410.
    assert float(competition(LEFT, RIGHT, 1.0)) == pytest.approx(-0.1308120)
    assert float(competition(3 * LEFT, 3 * RIGHT, 3.0)) == pytest.approx(-0.1308120)
    assert float(competition(LEFT, LEFT + 5, 1.0)) == pytest.approx(0.0, abs=1e-7)


def test_hand_computed_with_a_floor() -> None:
    # (3/4, 1/4) is clamped to (0.7, 0.3), and so is its mirror; M stays at 1/2.
    expected = -(0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5))
    assert float(competition(LEFT, RIGHT, 1.0, 0.3)) == pytest.approx(expected)


def test_lowest_is_minus_ln_2_and_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = competition(student, torch.tensor([[0.0, 1e4]]), 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(2.0))
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_gradient_flows_through_both_nets() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 3, 4, generator=generator).double().unbind()
    leaves = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: competition(s, t, 3.0), leaves)
    for gradient in torch.autograd.grad(competition(student, teacher, 3.0), leaves):
        assert float(gradient.abs().min()) > 0


def test_a_thousand_classes_are_heard_unless_the_floor_silences_them() -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = 0.5 * torch.randn(2, 4, 1000, generator=generator)
    student.requires_grad_()

    def share_of_classes_heard(floor: float) -> float:
        loss = competition(student, teacher, 3.0, floor)
        (gradient,) = torch.autograd.grad(loss, [student])
        return float((gradient != 0).double().mean())

    assert share_of_classes_heard(0.0) > 0.999
    assert share_of_classes_heard(0.01) == 0.0
