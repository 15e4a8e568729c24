from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.errors import NumericError, UserError
from kdci.methods.fast import Fast, FastSource
from kdci.models import PixelModel
from kdci.models.generators.generator import Generator
from kdci.models.generators.meta_generator import MetaGenerator
from kdci.training.losses import soft_label_kl
from tests.kdci.methods._tiny import (
    AUGMENTED,
    PLAIN,
    make_context,
    make_student,
    make_teacher,
)


def make_source(
    folder: Path, *, spec: DatasetSpec = PLAIN, teacher: PixelModel | None = None, **changes: Any
) -> FastSource:
    small: dict[str, Any] = {
        "latent_dim": 7,
        "generator_width": 4,
        "batch_size": 6,
        "num_steps": 3,
        "warmup_calls": 2,
    }
    context = make_context(folder, spec, teacher or make_teacher())
    return FastSource(context, Fast(**{**small, **changes}))


def weights_of(source: FastSource) -> list[Tensor]:
    return [weight.detach().clone() for weight in source.meta.generator.parameters()]


class NaiveFast:
    """Two warm-up calls written out step by step, on a copy of a fresh source."""

    def __init__(self, source: FastSource, *, update: str = "fomaml") -> None:
        self.meta = copy.deepcopy(source.meta.generator)
        self.teacher = make_teacher()
        self.random = torch.Generator()
        self.random.set_state(source.state_dict()["random"])
        self.update = update
        self.optimizer = torch.optim.Adam(
            self.meta.parameters(), lr=3 * source.params.generator_learning_rate, betas=(0.5, 0.999)
        )
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.all_images: list[list[Tensor]] = []
        self.all_losses: list[list[float]] = []

    def bn_inputs(self, images: Tensor) -> tuple[list[tuple[nn.BatchNorm2d, Tensor]], Tensor]:
        net = self.teacher.backbone
        first = net.first((images - 0.4) / 0.3)
        second = net.second(torch.relu(net.first_norm(first)))
        return [(net.first_norm, first), (net.second_norm, second)], self.teacher(images).logits

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        inputs, logits = self.bn_inputs(images)
        now = [(x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)) for _, x in inputs]
        bn = torch.zeros(())
        for index, (layer, _) in enumerate(inputs):
            mean, variance = now[index]
            if self.memory:
                mean = 0.1 * mean + 0.9 * self.memory[index][0]
                variance = 0.1 * variance + 0.9 * self.memory[index][1]
            bn = bn + (layer.running_mean - mean).pow(2).sum().sqrt()
            bn = bn + (layer.running_var - variance).pow(2).sum().sqrt()
        one_hot = -torch.log_softmax(logits, 1)[torch.arange(6), targets].mean()
        return 10.0 * bn + 0.4 * one_hot, [(m.detach(), v.detach()) for m, v in now]

    def call(self) -> None:
        latents = torch.randn(6, 7, generator=self.random).requires_grad_()
        targets = torch.randint(3, (6,), generator=self.random)
        fast = copy.deepcopy(self.meta)
        inner = torch.optim.Adam(fast.parameters(), lr=2e-3, betas=(0.5, 0.999))
        inner_latents = torch.optim.Adam([latents], lr=1e-2, betas=(0.5, 0.999))
        images_seen, losses_seen = [], []
        self.optimizer.zero_grad(set_to_none=False)
        for _ in range(3):
            images = fast(latents)
            loss, now = self.loss(images, targets)
            images_seen.append(images.detach().clone())
            losses_seen.append(float(loss.detach()))
            fast.zero_grad()
            latents.grad = None
            loss.backward()
            for meta, weight in zip(self.meta.parameters(), fast.parameters(), strict=True):
                meta.grad = weight.grad.clone() if meta.grad is None else meta.grad + weight.grad
            inner.step()
            inner_latents.step()
        if self.update == "reptile":
            for meta, weight in zip(self.meta.parameters(), fast.parameters(), strict=True):
                meta.grad = 67.0 * (meta.detach() - weight.detach())
        self.optimizer.step()
        self.memory = [
            (0.1 * m + 0.9 * old[0], 0.1 * v + 0.9 * old[1]) if self.memory else (m, v)
            for (m, v), old in zip(now, self.memory or now, strict=True)
        ]
        self.all_images.append(images_seen)
        self.all_losses.append(losses_seen)


@pytest.mark.parametrize("update", ["fomaml", "reptile"])
def test_two_calls_equal_a_naive_implementation(tmp_path: Path, update: str) -> None:
    source = make_source(tmp_path, meta_update=update)
    assert source.num_preparations == 2
    naive = NaiveFast(source, update=update)
    for number, metrics in enumerate(source.prepare()):
        naive.call()
        losses = naive.all_losses[number]
        best = losses.index(min(losses))
        assert metrics["inversion_loss"] == pytest.approx(min(losses), rel=1e-4)
        assert metrics["bank"] == 6.0 * (number + 1)
        kept = source.bank.rows(torch.arange(6 * number, 6 * number + 6)).float() / 255
        torch.testing.assert_close(kept, naive.all_images[number][best], atol=0.6 / 255, rtol=0)
        for got, expected in zip(weights_of(source), naive.meta.parameters(), strict=True):
            torch.testing.assert_close(got, expected.detach(), atol=2e-5, rtol=1e-4)
    assert source.calls == 2


def test_metrics_are_the_unweighted_terms(tmp_path: Path) -> None:
    source = make_source(tmp_path, bn_weight=2.0, one_hot_weight=3.0)
    metrics = next(source.prepare())
    assert set(metrics) == {"inversion_loss", "bn", "one_hot", "adversarial", "bank"}
    assert metrics["inversion_loss"] == pytest.approx(2 * metrics["bn"] + 3 * metrics["one_hot"])


def test_fomaml_meta_step_takes_the_sum_of_inner_gradients() -> None:
    generator = Generator(latent_dim=3, image_size=4, channels=1, width=2)
    meta = MetaGenerator(generator, learning_rate=0.1, update="fomaml", reptile_scale=67.0)
    before = [weight.detach().clone() for weight in generator.parameters()]
    adapted = meta.start()
    assert adapted is not generator
    gradients = [torch.ones_like(weight) for weight in before]
    gradients[0].neg_()
    meta.learn(adapted, gradients)
    for index, weight in enumerate(generator.parameters()):
        # Adam's first step has the length of its rate, against the gradient's sign.
        step = 0.1 if index == 0 else -0.1
        torch.testing.assert_close(weight.detach(), before[index] + step)
        assert weight.grad is None


def test_without_meta_update_the_shared_generator_is_adapted(tmp_path: Path) -> None:
    source = make_source(tmp_path, meta_update="none")
    naive = NaiveFast(source)
    before = weights_of(source)
    next(source.prepare())
    assert source.meta.start() is source.meta.generator
    # Three fresh-Adam steps of the inner rate, and no meta step of three times that.
    for old, new in zip(before, weights_of(source), strict=True):
        assert 0 < float((new - old).abs().max()) <= 3 * 2e-3 * 1.6
    assert source.state_dict()["meta"]["moments"] == {}
    naive.call()
    kept = source.bank.rows(torch.arange(6)).float() / 255
    best = naive.all_losses[0].index(min(naive.all_losses[0]))
    torch.testing.assert_close(kept, naive.all_images[0][best], atol=0.6 / 255, rtol=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    source = make_source(tmp_path, bn_weight=1e300)
    with pytest.raises(NumericError, match="inversion loss is not finite"):
        next(source.prepare())
    assert len(source.bank) == 0


class TestRefresh:
    def test_adversarial_from_the_second_refresh_on(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        warmup = list(source.prepare())
        student = make_student()
        refreshes = [source.refresh(student) for _ in range(2)]
        assert [metrics["adversarial"] for metrics in [*warmup, refreshes[0]]] == [0.0] * 3
        assert refreshes[1]["adversarial"] < 0.0
        assert refreshes[1]["bank"] == 24.0

    def test_the_student_shapes_the_images(self, tmp_path: Path) -> None:
        banks = []
        for name, weight in (("with", 50.0), ("without", 0.0)):
            source = make_source(tmp_path / name, warmup_calls=1, adversarial_weight=weight)
            list(source.prepare())
            for _ in range(2):
                source.refresh(make_student())
            banks.append(source.bank.rows(torch.arange(18)))
        assert torch.equal(banks[0][:12], banks[1][:12])
        assert not torch.equal(banks[0][12:], banks[1][12:])

    def test_models_are_left_as_they_were(self, tmp_path: Path) -> None:
        teacher, student = make_teacher(), make_student()
        student.backbone.first_norm.eval()
        student.backbone.head.bias.requires_grad_(False)
        weight = student.backbone.first.weight
        weight.grad = torch.ones_like(weight)
        source = make_source(tmp_path, teacher=teacher, warmup_calls=1)
        list(source.prepare())
        modes = [module.training for module in student.modules()]
        before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
        for _ in range(2):
            source.refresh(student)
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

    def test_no_hook_outlives_a_call(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        list(source.prepare())
        assert not any(module._forward_pre_hooks for module in source.context.teacher.modules())


class TestReset:
    def test_first_layer_and_its_moments_start_anew(self) -> None:
        generator = Generator(latent_dim=64, image_size=16, channels=1, width=64)
        meta = MetaGenerator(generator, learning_rate=0.1, update="fomaml", reptile_scale=1.0)
        meta.learn(meta.start(), [torch.ones_like(weight) for weight in generator.parameters()])
        kept = {name: value.clone() for name, value in generator.blocks.state_dict().items()}
        meta.reset_first_layer(torch.Generator().manual_seed(0))
        weight, norm = generator.linear.weight.detach(), generator.norm.weight.detach()
        assert float(weight.mean()) == pytest.approx(0.0, abs=1e-3)
        assert float(weight.std()) == pytest.approx(0.02, rel=0.05)
        assert float(norm.mean()) == pytest.approx(1.0, abs=0.01)  # not 0, the reference's slip
        assert 0.01 < float(norm.std()) < 0.03
        assert not bool(generator.linear.bias.any()) and not bool(generator.norm.bias.any())
        for name, value in generator.blocks.state_dict().items():
            assert torch.equal(value, kept[name])
        names = [name for name, _ in generator.named_parameters()]
        with_moments = {names[index] for index in meta.state_dict()["moments"]}
        assert with_moments == {n for n in names if not n.startswith(("linear.", "norm."))}

    @pytest.mark.parametrize(("after", "expected"), [(1, [3]), (2, [4]), (None, [])])
    def test_happens_once(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        after: int | None,
        expected: list[int],
    ) -> None:
        source = make_source(tmp_path, reset_after_calls=after, num_steps=1)
        calls_at_reset: list[int] = []
        monkeypatch.setattr(
            source.meta, "reset_first_layer", lambda _: calls_at_reset.append(source.calls)
        )
        list(source.prepare())
        for _ in range(4):
            source.refresh(make_student())
        assert calls_at_reset == expected


def test_batch_is_augmented_bank_rows(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    list(source.prepare())
    batch = source.batch(12)
    assert batch.dtype == torch.float32
    stored = {tuple(row.flatten().tolist()) for row in source.bank.rows(torch.arange(12))}
    drawn = {tuple(row.flatten().tolist()) for row in batch.mul(255).round().to(torch.uint8)}
    assert drawn == stored  # without replacement, and this dataset allows no augmentation
    augmented = make_source(tmp_path, spec=AUGMENTED).batch(12)
    assert float(augmented.max()) <= 1.0 and bool((augmented[:, :, 0] == 0).any())


def test_criterion(tmp_path: Path) -> None:
    criterion = make_source(tmp_path, temperature=3.0).criterion()
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert criterion(student, teacher) == {"kl": soft_label_kl(student, teacher, 3.0)}
    assert list(criterion.parameters()) == []


def test_misuse_is_refused(tmp_path: Path) -> None:
    class NoNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 3)

    with pytest.raises(UserError, match="methods.fast: .*BatchNorm.*found none in NoNorm"):
        make_source(tmp_path, teacher=PixelModel(NoNorm(), mean=(0.4,), std=(0.3,)))
    with pytest.raises(ValueError, match="meta_update"):
        make_source(tmp_path, meta_update="maml")
    with pytest.raises(ValueError, match="num_steps"):
        make_source(tmp_path, num_steps=0)


def test_the_teacher_sees_augmented_views_and_the_bank_keeps_the_images(tmp_path: Path) -> None:
    source = make_source(tmp_path, spec=AUGMENTED)
    views: list[Tensor] = []
    source.context.teacher.register_forward_hook(lambda _, inputs, __: views.append(inputs[0]))
    next(source.prepare())
    assert len(views) == 3
    # A sigmoid is never 0: zeros come from the padding of the crop.
    assert all(bool((view == 0).any()) for view in views)
    assert int(source.bank.rows(torch.arange(6)).min()) > 0
