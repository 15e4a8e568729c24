from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.errors import NumericError, UserError
from kdci.methods.deepinv import DeepInv, DeepInvSource
from kdci.models import PixelModel
from kdci.training.losses import soft_label_kl
from tests.kdci.methods._tiny import TinyNet, make_context, seen_noise

MEAN, STD = (0.4, 0.6), (0.3, 0.2)
PLAIN = DatasetSpec("tiny", 3, 8, 2, MEAN, STD, 0, False, ("a", "b", "c"))
FLIPPED = DatasetSpec("tiny", 3, 8, 2, MEAN, STD, 1, True, ("a", "b", "c"))
MEANS, STDS = torch.tensor(MEAN).view(1, 2, 1, 1), torch.tensor(STD).view(1, 2, 1, 1)
TERMS = {"bn", "one_hot", "adversarial", "tv", "l2"}


def make_model(seed: int) -> PixelModel:
    return seen_noise(TinyNet(seed, channels=2, padding=1), PLAIN)


def make_student() -> PixelModel:
    return make_model(2).train()


def make_source(
    folder: Path, *, spec: DatasetSpec = PLAIN, teacher: PixelModel | None = None, **changes: Any
) -> DeepInvSource:
    small: dict[str, Any] = {"batch_size": 6, "num_steps": 3, "warmup_calls": 2}
    context = make_context(folder, spec, teacher or make_model(1))
    return DeepInvSource(context, DeepInv(**{**small, **changes}))


def kept_images(source: DeepInvSource, call: int = 0) -> Tensor:
    return source.bank.rows(torch.arange(6 * call, 6 * call + 6)).float() / 255


def watch(source: DeepInvSource) -> list[Tensor]:
    """Return a list that grows by the images of every forward pass of the teacher."""
    views: list[Tensor] = []
    source.context.teacher.register_forward_hook(
        lambda _, inputs, __: views.append(inputs[0].detach().clone())
    )
    return views


def script_losses(source: DeepInvSource, losses: list[float]) -> None:
    """Make the source see these losses, one a step, with the gradients of its own."""
    original, scripted = source._readings, iter(losses)

    def readings(*arguments: Any) -> dict[str, Tensor]:
        found = original(*arguments)
        loss = found["inversion_loss"]
        return {**found, "inversion_loss": loss - loss.detach() + next(scripted)}

    source._readings = readings  # type: ignore[method-assign]


class NaiveDeepInv:
    """One call written out step by step, every term and option of it in use."""

    OPTIONS: dict[str, Any] = {
        "num_steps": 4,
        "low_resolution_steps": 3,
        "learning_rate": 0.3,
        "beta1": 0.6,
        "beta2": 0.95,
        "learning_rate_schedule": "cosine",
        "lr_warmup_steps": 2,
        "bn_weight": 2.0,
        "first_bn_factor": 3.0,
        "one_hot_weight": 1.5,
        "adversarial_weight": 4.0,
        "js_temperature": 2.0,
        "js_floor": 0.3,
        "tv_l1_weight": 0.3,
        "tv_l2_weight": 0.02,
        "l2_weight": 0.05,
        "jitter_fraction": 0.25,
    }

    def __init__(self, random_state: Tensor, student: PixelModel) -> None:
        self.teacher, self.student = make_model(1), copy.deepcopy(student).eval()
        self.random = torch.Generator()
        self.random.set_state(random_state)

    def terms(self, view: Tensor, targets: Tensor, compete: bool) -> dict[str, Tensor]:
        net, images = self.teacher.backbone, view * STDS + MEANS
        first = net.first(view)
        second = net.second(torch.relu(net.first_norm(first)))
        bn = torch.zeros(())
        for factor, layer, x in ((3.0, net.first_norm, first), (1.0, net.second_norm, second)):
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            bn = bn + factor * (layer.running_mean - mean).pow(2).sum().sqrt()
            bn = bn + factor * (layer.running_var - variance).pow(2).sum().sqrt()
        logits = self.teacher(images).logits
        adversarial = torch.zeros(())
        if compete:
            p, q = (logits / 2).softmax(1), (self.student(images).logits / 2).softmax(1)
            m = ((p + q) / 2).clamp(0.3, 0.7)
            p, q = p.clamp(0.3, 0.7), q.clamp(0.3, 0.7)
            adversarial = -(p * (p / m).log() + q * (q / m).log()).sum(1).mean() / 2
        differences = [
            view[:, :, :, 1:] - view[:, :, :, :-1],
            view[:, :, 1:] - view[:, :, :-1],
            view[:, :, 1:, 1:] - view[:, :, :-1, :-1],
            view[:, :, 1:, :-1] - view[:, :, :-1, 1:],
        ]
        l1 = sum((d.abs().mean() for d in differences), torch.zeros(()))
        l2 = sum((d.pow(2).sum().sqrt() for d in differences), torch.zeros(()))
        return {
            "bn": bn,
            "one_hot": -logits.log_softmax(1)[torch.arange(6), targets].mean(),
            "adversarial": adversarial,
            "tv": 0.3 * l1 + 0.02 * l2,
            "l2": view.pow(2).sum((1, 2, 3)).sqrt().mean(),
        }

    def view(self, pixels: Tensor, pooling: int) -> Tensor:
        side = 8 // pooling
        view = pixels.reshape(6, 2, side, pooling, side, pooling).mean((3, 5))
        limit = side // 4
        down = int(torch.randint(-limit, limit + 1, (), generator=self.random))
        right = int(torch.randint(-limit, limit + 1, (), generator=self.random))
        view = view.roll(down, 2).roll(right, 3)
        mirrored = bool(torch.randint(2, (), generator=self.random))
        return torch.flip(view, (3,)) if mirrored else view

    def call(self, compete: bool) -> tuple[Tensor, dict[str, float]]:
        pixels = torch.randn(6, 2, 8, 8, generator=self.random)
        targets = torch.randint(3, (6,), generator=self.random).sort().values
        steps: list[tuple[float, Tensor, dict[str, float]]] = []
        for pooling, rates in (
            (2, [0.15, 0.3, 0.3]),
            # Two steps of warm-up, then the two halves of a cosine.
            (1, [0.15, 0.3, 0.3, 0.3 * (1 + math.cos(math.pi / 2)) / 2]),
        ):
            m = v = torch.zeros_like(pixels)
            for number, rate in enumerate(rates, start=1):
                leaf = pixels.clone().requires_grad_()
                terms = self.terms(self.view(leaf, pooling), targets, compete)
                loss = (
                    2.0 * terms["bn"]
                    + 1.5 * terms["one_hot"]
                    + 4.0 * terms["adversarial"]
                    + terms["tv"]
                    + 0.05 * terms["l2"]
                )
                loss.backward()
                assert leaf.grad is not None
                if pooling == 1:
                    values = {name: float(term.detach()) for name, term in terms.items()}
                    steps.append((float(loss.detach()), pixels * STDS + MEANS, values))
                m = 0.6 * m + 0.4 * leaf.grad
                v = 0.95 * v + 0.05 * leaf.grad**2
                unbiased = (v / (1 - 0.95**number)).sqrt() + 1e-8
                pixels = pixels - rate * m / (1 - 0.6**number) / unbiased
                for channel in range(2):
                    low, high = -MEAN[channel] / STD[channel], (1 - MEAN[channel]) / STD[channel]
                    pixels[:, channel] = pixels[:, channel].clip(low, high)
        loss_value, images, values = min(steps, key=lambda step: step[0])
        return images, {"inversion_loss": loss_value, **values}


def test_two_calls_equal_a_naive_implementation(tmp_path: Path) -> None:
    source = make_source(tmp_path, spec=FLIPPED, warmup_calls=1, **NaiveDeepInv.OPTIONS)
    assert source.num_preparations == 1
    student = make_student()
    naive = NaiveDeepInv(source.state_dict()["random"], student)
    results = [*source.prepare(), source.refresh(student)]
    assert len(results) == source.calls == 2
    for number, metrics in enumerate(results):
        images, expected = naive.call(compete=number == 1)
        assert metrics == pytest.approx({**expected, "bank": 6.0 * (number + 1)}, rel=1e-3)
        assert (metrics["adversarial"] < 0) == (number == 1)
        kept = kept_images(source, number)
        # Rounding to bytes. Where a gradient almost vanishes its sign is noise, and Adam makes a
        # whole step of it: variances counted in double move the same two pixels of these 768.
        levels = (kept - images.clamp(0, 1)).abs() * 255
        assert float((levels > 2).float().mean()) < 0.005 and float(levels.max()) < 8
    # Both drew the same amount: the streams are still in step.
    assert torch.equal(naive.random.get_state(), source.random.get_state())


def test_metrics_are_the_terms_of_the_sum(tmp_path: Path) -> None:
    source = make_source(tmp_path, bn_weight=2.0, one_hot_weight=3.0, l2_weight=0.5)
    metrics = next(source.prepare())
    assert set(metrics) == {"inversion_loss", "bank", *TERMS}
    expected = 2 * metrics["bn"] + 3 * metrics["one_hot"] + 0.5 * metrics["l2"]
    assert metrics["inversion_loss"] == pytest.approx(expected)
    assert metrics["l2"] > 0 and metrics["tv"] == metrics["adversarial"] == 0.0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    source = make_source(tmp_path, bn_weight=1e300)
    with pytest.raises(NumericError, match="inversion loss is not finite"):
        next(source.prepare())
    assert len(source.bank) == 0


class TestSteps:
    def test_start_from_noise_that_is_kept_unjittered(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, spec=FLIPPED, num_steps=1, jitter_fraction=0.25)
        random = torch.Generator()
        random.set_state(source.state_dict()["random"])
        noise = torch.randn(6, 2, 8, 8, generator=random) * STDS + MEANS
        views = watch(source)
        next(source.prepare())
        torch.testing.assert_close(kept_images(source), noise.clamp(0, 1), atol=0.6 / 255, rtol=0)
        assert not torch.allclose(views[0], noise, atol=1e-3)
        torch.testing.assert_close(views[0].flatten().sort()[0], noise.flatten().sort()[0])

    def test_are_counted(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, num_steps=4, low_resolution_steps=3)
        views = watch(source)
        next(source.prepare())
        sides = [tuple(view.shape) for view in views]
        assert sides == [(6, 2, 4, 4)] * 3 + [(6, 2, 8, 8)] * 4

    def test_low_resolution_optimises_the_pool_of_the_same_pixels(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, num_steps=1, low_resolution_steps=40, jitter_fraction=0.0)
        views = watch(source)
        next(source.prepare())
        # Full resolution goes on where low resolution ended, far from where that began.
        assert float((views[-2] - views[0]).abs().max()) > 0.3
        pooled = views[-1].reshape(6, 2, 4, 2, 4, 2).mean((3, 5))
        assert float((pooled - views[-2]).abs().max()) < 0.3 * 0.1 * 1.6  # std times one step
        # Four pixels of a pool get the same gradient, so the noise between them stays.
        inside = views[-1][..., ::2, ::2] - views[-1][..., ::2, 1::2]
        assert float(inside.abs().mean()) > 0.02

    def test_pixels_stay_in_range_channel_by_channel(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, learning_rate=50.0, num_steps=3)
        views = watch(source)
        next(source.prepare())
        assert float(views[0].min()) < -0.1 and float(views[0].max()) > 1.1  # the noise
        for view in views[1:]:
            for channel in range(2):
                assert float(view[:, channel].min()) == pytest.approx(0.0, abs=1e-6)
                assert float(view[:, channel].max()) == pytest.approx(1.0, abs=1e-6)

    def test_learning_rates(self, tmp_path: Path) -> None:
        cosine = make_source(
            tmp_path, learning_rate_schedule="cosine", num_steps=6, lr_warmup_steps=2
        )
        # From the warm-up's end the rate falls over the remaining steps, to 0 just after them.
        expected = [0.5, 1.0, 1.0, *[(1 + math.cos(math.pi * k / 4)) / 2 for k in (1, 2, 3)]]
        assert [cosine._rate_factor(step, 6) for step in range(6)] == pytest.approx(expected)
        constant = make_source(tmp_path, num_steps=4, lr_warmup_steps=3)
        assert [constant._rate_factor(step, 4) for step in range(4)] == pytest.approx(
            [1 / 3, 2 / 3, 1.0, 1.0]
        )

    def test_many_steps_make_images_the_teacher_believes_in(self, tmp_path: Path) -> None:
        def one_term(name: str, num_steps: int, **weights: float) -> float:
            source = make_source(tmp_path / f"{name}{num_steps}", num_steps=num_steps, **weights)
            return next(source.prepare())[name]

        assert one_term("bn", 60) < 0.7 * one_term("bn", 1)
        alone = {"bn_weight": 0.0}
        assert one_term("one_hot", 60, **alone) < 0.7 * one_term("one_hot", 1, **alone)


class TestBest:
    @pytest.mark.parametrize("best", [0, 1, 2, 3])
    def test_is_the_batch_of_the_lowest_loss_as_that_step_saw_it(
        self, tmp_path: Path, best: int
    ) -> None:
        # An alias would be the last batch whatever the losses.
        source = make_source(tmp_path, num_steps=4, jitter_fraction=0.0)
        views = watch(source)
        script_losses(source, [float(step != best) for step in range(4)])
        metrics = next(source.prepare())
        assert metrics["inversion_loss"] == pytest.approx(0.0, abs=1e-6)
        kept = kept_images(source)
        distances = [float((kept - view.clamp(0, 1)).abs().max()) for view in views]
        assert distances[best] < 0.6 / 255
        assert min(distances[:best] + distances[best + 1 :]) > 5 / 255

    def test_is_of_a_full_resolution_step(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, num_steps=2, low_resolution_steps=2, jitter_fraction=0.0)
        views = watch(source)
        script_losses(source, [0.0, 0.0, 2.0, 1.0])
        metrics = next(source.prepare())
        assert metrics["inversion_loss"] == pytest.approx(1.0)
        assert float((kept_images(source) - views[3]).abs().max()) < 0.6 / 255


class TestRefresh:
    def test_the_student_shapes_the_images(self, tmp_path: Path) -> None:
        metrics, banks = {}, {}
        for name, weight in (("with", 50.0), ("without", 0.0)):
            source = make_source(
                tmp_path / name, num_steps=20, adversarial_weight=weight, js_temperature=1.0
            )
            metrics[name] = source.refresh(make_student())
            banks[name] = kept_images(source)
        assert metrics["with"]["adversarial"] < -0.05
        assert metrics["without"]["adversarial"] == 0.0
        assert not torch.equal(banks["with"], banks["without"])

    def test_competition_drives_the_nets_apart(self, tmp_path: Path) -> None:
        # Without the other terms it is all that moves the pixels.
        alone = {"bn_weight": 0.0, "one_hot_weight": 0.0}
        values = []
        for steps in (1, 40):
            source = make_source(tmp_path / str(steps), num_steps=steps, **alone)
            values.append(source.refresh(make_student())["adversarial"])
        assert values[1] < 2 * values[0] < 0

    @pytest.mark.parametrize(("weight", "runs"), [(1.0, 3), (0.0, 0)])
    def test_a_student_of_no_weight_is_not_run(
        self, tmp_path: Path, weight: float, runs: int
    ) -> None:
        student, seen = make_student(), []
        student.register_forward_hook(lambda *_: seen.append(1))
        make_source(tmp_path, adversarial_weight=weight).refresh(student)
        assert len(seen) == runs

    def test_models_are_left_as_they_were(self, tmp_path: Path) -> None:
        teacher, student = make_model(1), make_student()
        student.backbone.first_norm.eval()
        student.backbone.head.bias.requires_grad_(False)
        weight = student.backbone.first.weight
        weight.grad = torch.ones_like(weight)
        source = make_source(tmp_path, teacher=teacher, low_resolution_steps=1)
        modes = [module.training for module in student.modules()]
        before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
        next(source.prepare())
        assert source.refresh(student)["adversarial"] < 0
        for model, state in zip((teacher, student), before, strict=True):
            for name, value in model.state_dict().items():
                assert torch.equal(value, state[name])
        assert [module.training for module in student.modules()] == modes
        assert not any(module.training for module in teacher.modules())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        graded = [name for name, value in student.named_parameters() if value.grad is not None]
        assert graded == ["backbone.first.weight"] and bool((weight.grad == 1).all())
        fixed = [name for name, value in student.named_parameters() if not value.requires_grad]
        assert fixed == ["backbone.head.bias"]

    def test_the_student_answers_in_eval_mode(self, tmp_path: Path) -> None:
        student, modes = make_student(), []
        student.register_forward_hook(lambda module, *_: modes.append(module.training))
        make_source(tmp_path).refresh(student)
        assert modes == [False] * 3 and student.training

    def test_no_hook_outlives_a_call(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        list(source.prepare())
        assert not any(module._forward_pre_hooks for module in source.context.teacher.modules())


def test_targets_are_sorted_and_of_all_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path, batch_size=40, num_steps=2)
    original, seen = source._readings, []

    def readings(view: Tensor, targets: Tensor, *rest: Any) -> dict[str, Tensor]:
        seen.append(targets)
        return original(view, targets, *rest)

    monkeypatch.setattr(source, "_readings", readings)
    list(source.prepare())
    assert all(targets.tolist() == sorted(targets.tolist()) for targets in seen)
    assert all(set(targets.tolist()) == {0, 1, 2} for targets in seen)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_criterion(tmp_path: Path) -> None:
    criterion = make_source(tmp_path, temperature=3.0).criterion()
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert criterion(student, teacher) == {"kl": soft_label_kl(student, teacher, 3.0)}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0},
        {"batch_size": 1},
        {"low_resolution_steps": -1},
        {"learning_rate": 0.0},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"learning_rate_schedule": "milestones"},
        {"lr_warmup_steps": 3},
        {"lr_warmup_steps": -1},
        {"bn_weight": -1.0},
        {"first_bn_factor": -1.0},
        {"one_hot_weight": -1.0},
        {"adversarial_weight": -1.0},
        {"tv_l1_weight": -1.0},
        {"tv_l2_weight": float("nan")},
        {"l2_weight": -1.0},
        {"js_temperature": 0.0},
        {"js_floor": 0.5},
        {"js_floor": -0.01},
        {"jitter_fraction": 0.5},
        {"jitter_fraction": -0.1},
        {"warmup_calls": -1},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))}|has to be shorter than the 3"):
        make_source(tmp_path, **changes)


def test_an_odd_size_can_not_be_halved(tmp_path: Path) -> None:
    odd = DatasetSpec("tiny", 3, 7, 2, MEAN, STD, 0, False, ("a", "b", "c"))
    make_source(tmp_path, spec=odd)
    with pytest.raises(ValueError, match="even image size"):
        make_source(tmp_path, spec=odd, low_resolution_steps=1)


def test_a_teacher_without_statistics_is_refused(tmp_path: Path) -> None:
    class NoNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(128, 3)

    with pytest.raises(UserError, match="methods.deepinv: .*BatchNorm.*found none in NoNorm"):
        make_source(tmp_path, teacher=PixelModel(NoNorm(), mean=MEAN, std=STD))
