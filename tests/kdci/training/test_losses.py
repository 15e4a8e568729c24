from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdci.errors import UserError
from kdci.synthesis.inversion import BatchNormStatistics, frozen, require_batch_norm
from kdci.training.losses import (
    blend,
    bn_statistics_loss,
    disagreement,
    one_hot_costs,
    soft_label_kl,
)


def softmax_rows(logits: Tensor) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def naive_kl_rows(teacher: Tensor, student: Tensor) -> list[float]:
    return [
        sum(p * math.log(p / q) for p, q in zip(p_row, q_row, strict=True))
        for p_row, q_row in zip(softmax_rows(teacher), softmax_rows(student), strict=True)
    ]


def two_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten()
    )


class TestSoftLabelKl:
    def test_naive_loop(self) -> None:
        generator = torch.Generator().manual_seed(1)
        student, teacher = torch.randn(2, 5, 4, generator=generator).double() * 3
        expected = 4.0**2 * sum(naive_kl_rows(teacher / 4, student / 4)) / 5
        assert float(soft_label_kl(student, teacher, 4.0)) == pytest.approx(expected, abs=1e-10)

    def test_hand_computed(self) -> None:
        # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2.
        teacher = torch.tensor([[math.log(3.0), 0.0]])
        assert float(soft_label_kl(torch.zeros(1, 2), teacher, 1.0)) == pytest.approx(0.1308120)

    def test_scales_with_squared_temperature(self) -> None:
        teacher = torch.tensor([[math.log(3.0), 0.0]])
        softened = soft_label_kl(torch.zeros(1, 2), 20 * teacher, 20.0)
        assert float(softened) == pytest.approx(400 * 0.1308120, rel=1e-5)

    def test_gradient_reaches_the_student_only(self) -> None:
        student = torch.zeros(2, 3, requires_grad=True)
        teacher = torch.tensor([[1.0, 2.0, 3.0]] * 2, requires_grad=True)
        soft_label_kl(student, teacher, 2.0).backward()
        assert student.grad is not None and teacher.grad is None
        # d/ds of T^2 KL is T (p_S - p_T), over the batch size.
        expected = 2.0 * (1 / 3 - torch.softmax(teacher / 2, 1)) / 2
        torch.testing.assert_close(student.grad, expected.detach())

    def test_extreme_logits_stay_finite(self) -> None:
        student = torch.tensor([[1e4, 0.0]], requires_grad=True)
        loss = soft_label_kl(student, torch.tensor([[0.0, 1e4]]), 1.0)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(1e4)
        assert student.grad is not None and bool(student.grad.isfinite().all())


def test_one_hot_costs_are_minus_log_of_the_highest_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0], [5.0, 5.0, 5.0]])
    expected = [-math.log(max(row)) for row in softmax_rows(logits)]
    assert one_hot_costs(logits).tolist() == pytest.approx(expected, rel=1e-6)


class TestDisagreement:
    def test_counts_agreeing_rows_only(self) -> None:
        student = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
        teacher = torch.tensor([[4.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 5.0]])
        rows = naive_kl_rows(teacher, student)
        assert float(disagreement(student, teacher)) == pytest.approx(-(rows[0] + rows[2]) / 3)

    def test_zero_with_zero_gradient_where_all_disagree(self) -> None:
        student = torch.tensor([[2.0, 0.0]], requires_grad=True)
        teacher = torch.tensor([[0.0, 2.0]], requires_grad=True)
        loss = disagreement(student, teacher)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert student.grad is not None and not bool(student.grad.any())
        assert teacher.grad is not None and not bool(teacher.grad.any())

    def test_gradient_flows_through_both(self) -> None:
        student = torch.tensor([[1.0, 0.0]], requires_grad=True)
        teacher = torch.tensor([[3.0, 0.0]], requires_grad=True)
        disagreement(student, teacher).backward()
        assert student.grad is not None and bool(student.grad.any())
        assert teacher.grad is not None and bool(teacher.grad.any())


class TestBnStatisticsLoss:
    def test_hand_computed_norms_are_not_squared_and_sum_over_layers(self) -> None:
        loss = bn_statistics_loss(
            [torch.tensor([3.0, 4.0]), torch.tensor([1.0])],
            [torch.tensor([1.0, 1.0]), torch.tensor([7.0])],
            [torch.zeros(2), torch.zeros(1)],
            [torch.ones(2), torch.ones(1)],
        )
        assert float(loss) == pytest.approx(5.0 + 1.0 + 0.0 + 6.0)

    def test_zero_where_statistics_are_equal(self) -> None:
        model = two_norms().eval()
        images = torch.rand(6, 2, 5, 5)
        first, last = model[0], model[3]
        with torch.no_grad(), BatchNormStatistics(model) as statistics:
            # A layer's own statistics change what the next one sees: set them front to back.
            model(images)
            for index, layer in enumerate((first, last)):
                means, variances, *_ = statistics.compared
                layer.running_mean, layer.running_var = means[index], variances[index]
                model(images)
            loss = bn_statistics_loss(*statistics.compared)
        assert float(loss) == pytest.approx(0.0, abs=1e-6)

    def test_momentum_scales_the_gradient(self) -> None:
        means = [torch.tensor([3.0, 4.0], requires_grad=True)]
        fixed = ([torch.ones(2)], [torch.zeros(2)], [torch.ones(2)])
        (plain,) = torch.autograd.grad(bn_statistics_loss(means, *fixed), means)
        # Remembering the current value leaves the compared point, and so the direction, alone.
        blended = blend(means, [means[0].detach().clone()], 0.9)
        (scaled,) = torch.autograd.grad(bn_statistics_loss(blended, *fixed), means)
        torch.testing.assert_close(plain, torch.tensor([0.6, 0.8]))
        torch.testing.assert_close(scaled, 0.1 * plain)

    def test_blend(self) -> None:
        current, remembered = [torch.tensor([10.0])], [torch.tensor([20.0])]
        assert blend(current, None, 0.9)[0].item() == 10.0
        assert blend(current, remembered, 0.9)[0].item() == pytest.approx(19.0)


class TestBatchNormStatistics:
    def test_reads_inputs_like_a_loop_over_channels(self) -> None:
        model = two_norms().eval()
        images = torch.rand(4, 2, 5, 5)
        with torch.no_grad(), BatchNormStatistics(model) as statistics:
            model(images)
            seen = list(zip(*statistics.compared[:2], strict=True))
        inputs = [images, model[2](model[1](model[0](images)))]
        for features, (means, variances) in zip(inputs, seen, strict=True):
            for channel in range(features.shape[1]):
                values = features[:, channel].flatten().tolist()
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / len(values)
                assert float(means[channel]) == pytest.approx(mean, abs=1e-6)
                assert float(variances[channel]) == pytest.approx(variance, abs=1e-6)

    def test_inactive_outside_its_context(self) -> None:
        model = two_norms().eval()
        statistics = BatchNormStatistics(model)
        assert not any(module._forward_pre_hooks for module in model.modules())
        with pytest.raises(RuntimeError, match="boom"), statistics:
            assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 2
            model(torch.rand(2, 2, 5, 5))
            raise RuntimeError("boom")
        assert not any(module._forward_pre_hooks for module in model.modules())
        model(torch.rand(2, 2, 5, 5))
        with pytest.raises(KeyError):
            _ = statistics.compared

    def test_float32_under_autocast(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
        with (
            BatchNormStatistics(model) as statistics,
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            model(torch.rand(2, 1, 5, 5))
            assert {one.dtype for values in statistics.compared for one in values} == {
                torch.float32
            }

    def test_layers_without_running_statistics_do_not_count(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2))
        assert len(BatchNormStatistics(model)) == 1
        require_batch_norm(model, "fast", "wrn-16-1")
        with pytest.raises(UserError, match="methods.fast: .*found none in vgg-plain") as caught:
            require_batch_norm(model[0], "fast", "vgg-plain")
        assert caught.value.exit_code == 2 and caught.value.subject == "methods.fast"


def test_frozen_restores_modes_and_flags_after_an_error() -> None:
    model = two_norms().train()
    model[0].eval()
    model[1].weight.requires_grad_(False)
    with pytest.raises(RuntimeError, match="boom"), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(weight.requires_grad for weight in model.parameters())
        raise RuntimeError("boom")
    assert [module.training for module in model] == [False, True, True, True, True]
    flags = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert flags == ["1.weight"]
