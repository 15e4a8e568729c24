from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as vision

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.resized_crop import draw_resized_crop
from kdci.errors import NumericError, UserError
from kdci.methods.cmi import Cmi, CmiSource
from kdci.models import BACKBONES, PixelModel, build_pixel_model
from kdci.models.generators.generator import Generator, reset_parameters_
from kdci.training.losses import soft_label_kl
from kdci.training.optimizers import Adam
from tests.kdci.methods._tiny import (
    AUGMENTED,
    PLAIN,
    make_context,
    make_student,
    make_teacher,
)


def make_source(
    folder: Path, *, spec: DatasetSpec = PLAIN, teacher: PixelModel | None = None, **changes: Any
) -> CmiSource:
    small: dict[str, Any] = {
        "latent_dim": 7,
        "generator_width": 4,
        "batch_size": 6,
        "num_steps": 3,
        "projection_dim": 5,
        "memory_size": 12,
        "num_negatives": 8,
        "warmup_calls": 2,
    }
    context = make_context(folder, spec, teacher or make_teacher())
    return CmiSource(context, Cmi(**{**small, **changes}))


def count_forwards(model: nn.Module) -> list[int]:
    """Return a list that grows by one batch size at each forward pass of ``model``."""
    sizes: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    return sizes


class NaiveCmi:
    """Calls written out step by step, on a copy of a fresh source."""

    def __init__(self, source: CmiSource, *, learning_rate: float = 0.0, eps: float = 1e-8) -> None:
        self.teacher = make_teacher()
        self.head = copy.deepcopy(source.discrimination.head)
        self.random = torch.Generator()
        self.random.set_state(source.state_dict()["random"])
        self.generator_options = {"lr": learning_rate, "betas": (0.5, 0.999), "eps": eps}
        self.head_adam = torch.optim.Adam(self.head.parameters(), lr=learning_rate, eps=eps)
        self.memory: list[tuple[Tensor, Tensor]] = []  # by slot
        self.pointer = 0
        self.losses: list[list[float]] = []
        self.terms: list[list[dict[str, float]]] = []
        self.kept: list[Tensor] = []

    def bn_inputs(self, images: Tensor) -> list[tuple[nn.BatchNorm2d, Tensor]]:
        net = self.teacher.backbone
        first = net.first((images - 0.4) / 0.3)
        second = net.second(torch.relu(net.first_norm(first)))
        return [(net.first_norm, first), (net.second_norm, second)]

    def features(self, images: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)) for _, x in self.bn_inputs(images)], dim=1)

    def local_view(self, images: Tensor) -> Tensor:
        drawn = draw_resized_crop(
            6, height=8, width=8, scale=(0.25, 1.0), flip=False, generator=self.random
        )
        crops = []
        for index in range(6):
            box = [int(part[index]) for part in drawn[:4]]
            crops.append(vision.resized_crop(images[index], *box, [8, 8]))
        return torch.stack(crops)

    def contrastive(self, local: Tensor, global_: Tensor) -> Tensor:
        slots = torch.randperm(len(self.memory), generator=self.random)[:8].tolist()
        rows = [self.memory[slot] for slot in slots]
        queries = [*local, *(row[0] for row in rows)]
        keys = [*global_, *(row[1] for row in rows)]
        project: Callable[[Tensor], Tensor] = lambda row: self.head(row[None])[0]  # noqa: E731
        own_keys = torch.stack([project(key) for key in keys]).detach()
        costs = [
            -torch.log_softmax(own_keys @ project(query) / 0.2, dim=0)[index]
            for index, query in enumerate(queries)
        ]
        current, rest = sum(costs[:6]) / 6, sum(costs[6:])
        return current + rest / len(rows) if rows else current

    def step_terms(
        self, images: Tensor, targets: Tensor, student: PixelModel | None
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        bn = torch.zeros(())
        for layer, x in self.bn_inputs(images):
            bn = bn + (layer.running_mean - x.mean((0, 2, 3))).norm()
            bn = bn + (layer.running_var - x.var((0, 2, 3), unbiased=False)).norm()
        logits = self.teacher(images).logits
        adversarial = torch.zeros(())
        if student is not None:
            opinions = student(images).logits
            for mine, theirs in zip(opinions, logits, strict=True):
                if mine.argmax() == theirs.argmax():
                    p = theirs.softmax(0)
                    adversarial = adversarial - (p * (p.log() - mine.log_softmax(0))).sum() / 6
        local = self.features(self.local_view(images))
        global_ = self.features(images)
        terms = {
            "bn": bn,
            "one_hot": -torch.log_softmax(logits, 1)[torch.arange(6), targets].mean(),
            "adversarial": adversarial,
            "contrastive": self.contrastive(local, global_),
        }
        return terms, local, global_

    def call(self, student: PixelModel | None = None) -> None:
        generator = Generator(latent_dim=7, image_size=8, channels=1, width=4)
        reset_parameters_(generator, self.random)
        latents = torch.randn(6, 7, generator=self.random).requires_grad_()
        targets = torch.tensor(sorted(torch.randint(3, (6,), generator=self.random).tolist()))
        generator_adam = torch.optim.Adam(generator.parameters(), **self.generator_options)
        latent_adam = torch.optim.Adam([latents], **self.generator_options)
        weights = {"bn": 1.0, "one_hot": 1.0, "adversarial": 0.5, "contrastive": 0.8}
        steps = []
        for _ in range(3):
            images = generator(latents)
            terms, local, global_ = self.step_terms(images, targets, student)
            loss = sum(weights[name] * term for name, term in terms.items())
            values = {name: float(term.detach()) for name, term in terms.items()}
            views = [part.detach().clone() for part in (images, local, global_)]
            steps.append((float(loss.detach()), values, *views))
            for optimizer in (generator_adam, latent_adam, self.head_adam):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (generator_adam, latent_adam, self.head_adam):
                optimizer.step()
        self.losses.append([step[0] for step in steps])
        self.terms.append([step[1] for step in steps])
        best = min(steps, key=lambda step: step[0])
        self.kept.append(best[2])
        for pair in zip(best[3], best[4], strict=True):
            if len(self.memory) < 12:
                self.memory.append(pair)
            else:
                self.memory[self.pointer] = pair
            self.pointer = (self.pointer + 1) % 12


def test_calls_equal_a_naive_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With its usual eps Adam turns rounding into whole steps where a gradient is nearly 0.
    for module in ("methods.cmi", "synthesis.instance_discrimination"):
        monkeypatch.setattr(f"kdci.{module}.Adam", partial(Adam, eps=1e-3))
    source = make_source(tmp_path, learning_rate=0.02)
    assert source.num_preparations == 2
    naive = NaiveCmi(source, learning_rate=0.02, eps=1e-3)
    student = make_student().eval()
    calls = source.prepare()
    for number in range(4):
        warm = number < 2
        metrics = next(calls) if warm else source.refresh(student)
        naive.call(None if warm else student)
        losses = naive.losses[number]
        best = losses.index(min(losses))
        assert metrics["inversion_loss"] == pytest.approx(min(losses), rel=1e-4)
        for name, value in naive.terms[number][best].items():
            assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6)
        assert metrics["bank"] == 6.0 * (number + 1)
        kept = source.bank.rows(torch.arange(6 * number, 6 * number + 6)).float() / 255
        torch.testing.assert_close(kept, naive.kept[number], atol=0.6 / 255, rtol=0)
        expected = torch.stack([torch.stack(pair) for pair in naive.memory])
        torch.testing.assert_close(source.discrimination.memory.rows, expected, atol=1e-3, rtol=0)
        for got, weight in zip(
            source.discrimination.head.parameters(), naive.head.parameters(), strict=True
        ):
            torch.testing.assert_close(got, weight, atol=1e-3, rtol=0)
    assert metrics["adversarial"] < 0.0
    assert next(calls, None) is None and source.calls == 4


def test_metrics_are_the_unweighted_terms(tmp_path: Path) -> None:
    source = make_source(
        tmp_path, bn_weight=2.0, one_hot_weight=3.0, contrastive_weight=4.0, adversarial_weight=5.0
    )
    weights = {"bn": 2.0, "one_hot": 3.0, "contrastive": 4.0, "adversarial": 5.0}
    for metrics in (next(source.prepare()), source.refresh(make_student())):
        assert set(metrics) == {"inversion_loss", "bank", *weights}
        total = sum(weight * metrics[name] for name, weight in weights.items())
        assert metrics["inversion_loss"] == pytest.approx(total, rel=1e-5)


def test_the_best_step_is_kept_and_its_features_enter_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path, learning_rate=0.1, num_steps=6)
    steps: list[tuple[Tensor, dict[str, Tensor]]] = []
    readings_of = source._readings

    def recorded(images: Tensor, *others: Any) -> Any:
        readings, features = readings_of(images, *others)
        copies = {name: value.detach().clone() for name, value in features.items()}
        steps.append((images.detach().clone(), copies))
        # The third step is made the best.
        raised = readings["inversion_loss"] + (0.0 if len(steps) == 3 else 1e3)
        return {**readings, "inversion_loss": raised}, features

    monkeypatch.setattr(source, "_readings", recorded)
    next(source.prepare())
    assert len(steps) == 6
    images, features = steps[2]
    assert torch.equal(source.bank.rows(torch.arange(6)), (images * 255).round().to(torch.uint8))
    memory = source.discrimination.memory.rows
    assert torch.equal(memory[:, 0], features["local"])
    assert torch.equal(memory[:, 1], features["global_"])
    torch.testing.assert_close(NaiveCmi(source).features(images), memory[:, 1])
    assert not torch.allclose(memory[:, 0], memory[:, 1], atol=0.01)


def test_a_memory_at_its_size_still_gives_negatives(tmp_path: Path) -> None:
    """Public code draws none in the call after the memory filled, and its loss is NaN."""
    source = make_source(tmp_path, num_steps=1, warmup_calls=5)
    memory, drawn = source.discrimination.memory, []
    draw = memory.draw

    def counted(num: int, random: torch.Generator) -> Tensor:
        rows = draw(num, random)
        drawn.append(len(rows))
        return rows

    memory.draw = counted  # type: ignore[method-assign]
    metrics = list(source.prepare())
    assert drawn == [0, 6, 8, 8, 8]
    # Two means of cross-entropies among 12 to 14 rows, instead of one among 6.
    assert all(m["contrastive"] > 1.3 * metrics[0]["contrastive"] for m in metrics[1:])


def test_the_head_goes_on_and_the_generator_starts_anew(tmp_path: Path) -> None:
    source = make_source(tmp_path, num_steps=1)
    calls = source.prepare()
    steps, firsts = [], []
    for _ in range(2):
        next(calls)
        moments = source.state_dict()["discrimination"]["moments"]
        steps.append({float(value["step"]) for value in moments.values()})
        firsts.append(source._generator.linear.weight.detach().clone())
    assert steps == [{1.0}, {2.0}]
    for weight in firsts:  # N(0, 0.02^2) plus one step of 0.001
        assert float(weight.std()) == pytest.approx(0.02, rel=0.15)
    assert float((firsts[0] - firsts[1]).abs().mean()) > 0.015


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    source = make_source(tmp_path, bn_weight=1e300)
    with pytest.raises(NumericError, match="methods.cmi.*inversion loss is not finite"):
        next(source.prepare())
    assert len(source.bank) == 0 and len(source.discrimination.memory) == 0


class TestForwardPasses:
    def test_the_teacher_runs_twice_a_step_and_the_student_once(self, tmp_path: Path) -> None:
        source, student = make_source(tmp_path), make_student()
        sizes, student_sizes = count_forwards(source.context.teacher), count_forwards(student)
        next(source.prepare())
        assert sizes == [6] * 6 and student_sizes == []
        source.refresh(student)
        assert sizes == [6] * 12 and student_sizes == [6] * 3

    def test_terms_of_weight_0_cost_nothing(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, contrastive_weight=0.0, adversarial_weight=0.0)
        student = make_student()
        sizes, student_sizes = count_forwards(source.context.teacher), count_forwards(student)
        head = copy.deepcopy(source.discrimination.head.state_dict())
        for metrics in [next(source.prepare()), source.refresh(student)]:
            assert metrics["contrastive"] == metrics["adversarial"] == 0.0
        assert sizes == [6] * 6 and student_sizes == []
        assert len(source.discrimination.memory) == 0
        for name, value in source.discrimination.head.state_dict().items():
            assert torch.equal(value, head[name])

    def test_views(self, tmp_path: Path) -> None:
        source, student = make_source(tmp_path, spec=AUGMENTED, num_steps=2), make_student()
        views: dict[str, list[Tensor]] = {"teacher": [], "student": []}
        for name, model in (("teacher", source.context.teacher), ("student", student)):
            model.register_forward_hook(
                lambda _, inputs, __, name=name: views[name].append(inputs[0])
            )
        source.refresh(student)
        # A sigmoid is never 0: zeros come from the padding of the global view's crop, and
        # the local view has none.
        assert [bool((view == 0).any()) for view in views["teacher"]] == [True, False] * 2
        assert len(views["student"]) == 2
        assert all(map(torch.equal, views["student"], views["teacher"][::2]))
        assert int(source.bank.rows(torch.arange(6)).min()) > 0

    @pytest.mark.parametrize(("spec", "flips"), [(PLAIN, {False}), (AUGMENTED, {False, True})])
    def test_the_local_view_is_flipped_where_lawful(
        self, tmp_path: Path, spec: DatasetSpec, flips: set[bool]
    ) -> None:
        source = make_source(tmp_path, spec=spec)
        views: list[Tensor] = []
        source.context.teacher.register_forward_hook(lambda _, inputs, __: views.append(inputs[0]))
        ramp = torch.linspace(0.1, 0.9, 8).expand(64, 1, 8, 8)
        source._local_features(ramp)
        falling = (views[0][:, 0, 4, -1] < views[0][:, 0, 4, 0]).tolist()
        assert set(falling) == flips
        # Enlarged parts of a quarter and more: about half of the ramp's range or all of it.
        spans = views[0].amax((1, 2, 3)) - views[0].amin((1, 2, 3))
        assert 0.25 < float(spans.min()) < 0.45 and 0.75 < float(spans.max()) < 0.81


class TestGradients:
    def test_the_contrastive_term_reaches_images_through_the_local_view_only(
        self, tmp_path: Path
    ) -> None:
        source = make_source(
            tmp_path, bn_weight=0.0, one_hot_weight=0.0, adversarial_weight=0.0, num_steps=1
        )
        next(source.prepare())  # so that there are negatives
        naive = NaiveCmi(source)
        naive.memory = [tuple(pair) for pair in source.discrimination.memory.rows]
        images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))
        images.requires_grad_()
        readings, _ = source._readings(images, torch.zeros(6, dtype=torch.int64), None)
        (got,) = torch.autograd.grad(readings["inversion_loss"], images)
        local = naive.features(naive.local_view(images))
        expected_loss = 0.8 * naive.contrastive(local, naive.features(images).detach())
        (expected,) = torch.autograd.grad(expected_loss, images)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-3)
        assert float(expected.abs().max()) > 1e-4

    @pytest.mark.parametrize("term", ["bn", "one_hot", "contrastive", "adversarial"])
    def test_each_term_moves_generator_and_latents(self, tmp_path: Path, term: str) -> None:
        source, student = make_source(tmp_path), make_student().eval()
        latents = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
        source.context.teacher.requires_grad_(False)
        readings, features = source._readings(
            source._generator(latents), torch.tensor([0, 0, 1, 1, 2, 2]), student
        )
        assert set(features) == {"local", "global_"} and features["local"].shape == (6, 10)
        weight = source._generator.linear.weight
        head = list(source.discrimination.head.parameters())
        gradients = torch.autograd.grad(readings[term], [latents, weight, *head], allow_unused=True)
        for gradient in gradients[:2]:
            assert gradient is not None and bool((gradient != 0).any())
        reached = [
            gradient is not None and bool((gradient != 0).any()) for gradient in gradients[2:]
        ]
        assert reached == [term == "contrastive"] * 4

    def test_models_are_left_as_they_were(self, tmp_path: Path) -> None:
        teacher, student = make_teacher(), make_student()
        student.backbone.first_norm.eval()
        student.backbone.head.bias.requires_grad_(False)
        weight = student.backbone.first.weight
        weight.grad = torch.ones_like(weight)
        modes = [module.training for module in student.modules()]
        before = copy.deepcopy((teacher.state_dict(), student.state_dict()))
        source = make_source(tmp_path, teacher=teacher, warmup_calls=1)
        list(source.prepare())
        source.refresh(student), source.refresh(student)
        for model, state in zip((teacher, student), before, strict=True):
            for name, value in model.state_dict().items():
                assert torch.equal(value, state[name])
        assert [module.training for module in student.modules()] == modes
        assert not any(module.training for module in teacher.modules())
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(parameter.requires_grad for parameter in teacher.parameters())
        graded = [name for name, value in student.named_parameters() if value.grad is not None]
        assert graded == ["backbone.first.weight"] and bool((weight.grad == 1).all())
        fixed = [name for name, value in student.named_parameters() if not value.requires_grad]
        assert fixed == ["backbone.head.bias"]
        assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_adversarial_from_the_first_refresh_on(tmp_path: Path) -> None:
    source, student = make_source(tmp_path), make_student()
    assert [metrics["adversarial"] for metrics in source.prepare()] == [0.0, 0.0]
    assert all(source.refresh(student)["adversarial"] < 0.0 for _ in range(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_dim": 8},
        {"generator_width": 6},
        {"batch_size": 7},
        {"num_steps": 4},
        {"learning_rate": 0.02},
        {"bn_weight": 9.0},
        {"one_hot_weight": 9.0},
        {"adversarial_weight": 9.0},
        {"contrastive_weight": 9.0},
        {"contrastive_temperature": 0.05},
        {"projection_dim": 4},
        {"memory_size": 9},
        {"num_negatives": 3},
        {"warmup_calls": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_argument_counts(tmp_path: Path, changes: dict[str, Any]) -> None:
    pools, losses = [], []
    for name, settings in (("as is", {}), ("changed", changes)):
        source = make_source(tmp_path / name, **{"learning_rate": 0.1, **settings})
        metrics = [*source.prepare(), *(source.refresh(make_student()) for _ in range(2))]
        pools.append(source.bank.rows(torch.arange(len(source.bank))))
        losses.append([m["inversion_loss"] for m in metrics])
    assert losses[0] != losses[1]
    assert pools[0].shape != pools[1].shape or not torch.equal(*pools)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_can_teach(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    teacher = build_pixel_model(name, PLAIN).eval()
    source = make_source(
        tmp_path, teacher=teacher, num_steps=1, batch_size=2, memory_size=2, warmup_calls=2
    )
    metrics = list(source.prepare())
    # Two ways to be wrong among two rows; then the memory's two rows join in.
    assert 0 < metrics[0]["contrastive"] < metrics[1]["contrastive"]
    features = source.discrimination.memory.rows
    assert features.shape[:2] == (2, 2) and float(features.std()) > 0


def test_criterion(tmp_path: Path) -> None:
    criterion = make_source(tmp_path, temperature=3.0).criterion()
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert criterion(student, teacher) == {"kl": soft_label_kl(student, teacher, 3.0)}


def test_misuse_is_refused(tmp_path: Path) -> None:
    class NoNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 3)

    with pytest.raises(UserError, match="methods.cmi: .*BatchNorm.*found none in NoNorm"):
        make_source(tmp_path, teacher=PixelModel(NoNorm(), mean=(0.4,), std=(0.3,)))
    for changes in (
        {"num_steps": 0},
        {"batch_size": 1},
        {"memory_size": 5},
        {"num_negatives": -1},
        {"contrastive_temperature": 0.0},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(changes))}|has to hold a batch of 6"):
            make_source(tmp_path, **changes)
