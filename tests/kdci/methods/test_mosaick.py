from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import NumericError, UserError
from kdci.methods.mosaick import Mosaick, MosaickSource
from kdci.models import PixelModel, Prediction
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.base import SoftLabelCriterion, SourceContext
from tests.kdci._tensor_pool import TensorPool

PLAIN = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 0, False, ("a", "b", "c"))
AUGMENTED = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))
Flatten = Callable[[object], dict[str, object]]


class LinearNet(nn.Module):
    """Counts the images it was shown; its predictions are sure of themselves."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(64, 3)
        self.shown = 0

    def forward(self, images: Tensor) -> Prediction:
        self.shown += len(images)
        features = self.norm(images).flatten(1)
        return Prediction(3 * self.linear(features), features)


def make_net(seed: int) -> PixelModel:
    return PixelModel(LinearNet(seed), mean=PLAIN.mean, std=PLAIN.std)


def make_pool(num_images: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 1, 8, 8), generator=generator, dtype=torch.uint8)


def make_source(
    folder: Path,
    *,
    spec: DatasetSpec = PLAIN,
    pool: Tensor | None = None,
    seed: int = 5,
    **changes: Any,
) -> MosaickSource:
    folder.mkdir(exist_ok=True)
    bank = ImageBank(folder / "tail.bin", shape=(1, 8, 8))
    chosen = make_pool() if pool is None else pool
    context = SourceContext(make_net(1).eval(), spec, bank, seed, 0.9, lambda: TensorPool(chosen))
    small: dict[str, Any] = {
        "num_selected": 12,
        "latent_dim": 7,
        "generator_width": 4,
        "discriminator_width": 4,
        "batch_size": 6,
        "warmup_steps": 4,
        "num_samples": 9,
        "score_batch_size": 2,
    }
    return MosaickSource(context, Mosaick(**{**small, **changes}))


def make_ready(folder: Path, **changes: Any) -> MosaickSource:
    source = make_source(folder, **changes)
    list(source.prepare())
    return source


def rows_of(bank: ImageBank) -> Tensor:
    return bank.rows(torch.arange(len(bank)))


def naive_choice(teacher: PixelModel, pool: Tensor, num_selected: int) -> list[int]:
    entropies = []
    for row in range(len(pool)):
        logits = teacher(pool[row : row + 1].float() / 255).logits[0].tolist()
        powers = [math.exp(value) for value in logits]
        entropy = -sum(p / sum(powers) * math.log(p / sum(powers)) for p in powers)
        entropies.append((-entropy, row))
    return sorted(row for _, row in sorted(entropies)[:num_selected])


class TestChoice:
    def test_keeps_the_highest_entropy_in_the_pools_order(self, tmp_path: Path) -> None:
        source, pool = make_source(tmp_path), make_pool()
        parts = source.prepare()
        reports = [next(parts) for _ in range(4)]
        expected = naive_choice(source.context.teacher, pool, 12)
        assert expected != list(range(12))
        assert torch.equal(rows_of(source.bank), pool[expected])
        assert source.num_open_world == 12
        assert [report["scored"] for report in reports[:-1]] == [20.0, 40.0, 50.0]
        assert reports[-1]["bank"] == 12.0
        assert reports[-1]["selected_entropy"] > reports[-2]["entropy"] > 0

    def test_an_image_the_teacher_is_wholly_sure_of_does_not_come_first(
        self, tmp_path: Path
    ) -> None:
        pool = make_pool(20)
        source = make_source(tmp_path, pool=pool, num_selected=5)
        linear = source.context.teacher.backbone.linear
        pool[7] = 255
        with torch.no_grad():
            linear.weight.zero_()
            linear.weight[0] = 0.5
            linear.bias[:] = torch.tensor([-0.5 * 64 * 0.1 / 0.3, 0.0, 0.0])
        sure = source.context.teacher(pool.float() / 255).logits.detach().softmax(1)
        assert sure[7].tolist() == [1.0, 0.0, 0.0] and int((sure == 0).any(1).sum()) == 1
        list(source.prepare())
        chosen = rows_of(source.bank)[:5]
        assert not bool((chosen == 255).flatten(1).all(1).any())

    def test_too_small_a_pool_is_refused_before_scoring(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, num_selected=51)
        with pytest.raises(UserError, match="methods.mosaick.num_selected: is 51, .* 50 images"):
            next(source.prepare())
        assert source.context.teacher.backbone.shown == 0


class TestWarmUp:
    def test_reports_and_samples(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, warmup_steps=45, num_samples=40)
        reports = list(source.prepare())[4:]
        assert source.num_preparations == 0 and source.game.steps == 45
        # 45 steps are 15 parts of 3; the second half's end at 24, 27, ..., 45.
        portions = [0] * 7 + [40 * portion // 8 for portion in range(1, 9)]
        assert [report["bank"] for report in reports] == [12.0 + made for made in portions]
        assert set(reports[0]) == {
            "generator_loss",
            "discriminator",
            "local",
            "align",
            "balance",
            "adversarial",
            "bank",
        }
        assert {report["adversarial"] for report in reports} == {0.0}
        assert reports[0]["generator_loss"] == pytest.approx(
            reports[0]["local"] + reports[0]["align"] + 10 * reports[0]["balance"], rel=1e-5
        )
        made = rows_of(source.bank)[12:]
        assert len(made.unique(dim=0)) == 40
        assert source.num_open_world == 12

    @pytest.mark.parametrize(
        ("steps", "made"),
        [(1, [9]), (2, [0, 9]), (3, [0, 4, 9]), (41, [0] * 6 + [1, 2, 3, 4, 5, 6, 7, 9])],
    )
    def test_short_warm_ups(self, tmp_path: Path, steps: int, made: list[int]) -> None:
        source = make_source(tmp_path, warmup_steps=steps)
        banks = [report["bank"] - 12 for report in list(source.prepare())[4:]]
        assert source.game.steps == steps and banks == made

    def test_a_part_is_the_mean_of_its_steps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = make_source(tmp_path, warmup_steps=40)
        plain, locals_ = source.game.step, []

        def watched(*arguments: Any, **options: Any) -> dict[str, float]:
            readings = plain(*arguments, **options)
            locals_.append(readings["local"])
            return readings

        monkeypatch.setattr(source.game, "step", watched)
        reports = list(source.prepare())[4:]
        means = [(a + b) / 2 for a, b in zip(locals_[::2], locals_[1::2], strict=True)]
        assert [report["local"] for report in reports] == pytest.approx(means)

    def test_real_images_are_the_chosen_ones_as_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = make_source(tmp_path, spec=AUGMENTED, warmup_steps=6)
        real: list[Tensor] = []
        plain = source.game.step

        def watched(latents: Tensor, images: Tensor, *others: Any, **options: Any) -> Any:
            real.append(images)
            return plain(latents, images, *others, **options)

        monkeypatch.setattr(source.game, "step", watched)
        list(source.prepare())
        source.refresh(make_net(2))
        source.refresh(make_net(2))
        chosen = rows_of(source.bank)[:12].float() / 255
        for first, second in zip(real[::2], real[1::2], strict=True):
            both = torch.cat([first, second])  # 12 of 12 without replacement
            assert sorted(map(str, both.tolist())) == sorted(map(str, chosen.tolist()))

    def test_a_loss_that_is_not_finite_stops_the_run(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, balance_weight=1e300)
        with pytest.raises(NumericError, match=r"methods\.mosaick, game step 1: "):
            list(source.prepare())
        assert len(source.bank) == 12


class TestRefresh:
    def test_is_one_adversarial_step_that_leaves_the_student_alone(
        self, tmp_path: Path, flatten: Flatten
    ) -> None:
        source, student = make_ready(tmp_path), make_net(2).train()
        before = flatten([source.context.teacher.state_dict(), student.state_dict()])
        readings = source.refresh(student)
        assert readings["adversarial"] < 0 and "bank" not in readings
        assert source.game.steps == 5 and len(source.bank) == 21
        assert flatten([source.context.teacher.state_dict(), student.state_dict()]) == before
        assert all(module.training for module in student.modules())
        assert all(weight.grad is None for weight in student.parameters())

    def test_the_student_shapes_the_generator(self, tmp_path: Path) -> None:
        images = []
        for name, weight in (("with", 50.0), ("without", 0.0), ("again", 50.0)):
            source = make_ready(tmp_path / name, adversarial_weight=weight)
            source.refresh(make_net(2))
            images.append(source.batch(8)[:4])
        assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])

    def test_period_is_in_distillation_steps(self, tmp_path: Path) -> None:
        assert make_source(tmp_path).refresh_period == 5
        changed = make_source(tmp_path, distillation_steps_per_game_step=3)
        assert changed.refresh_period == 3

    def test_rates_fall_along_a_cosine_after_the_warm_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def factors(source: MosaickSource) -> list[float]:
            seen: list[float] = []
            plain = source.game.step

            def watched(*arguments: Any, rate_factor: float) -> dict[str, float]:
                seen.append(rate_factor)
                return plain(*arguments, rate_factor=rate_factor)

            monkeypatch.setattr(source.game, "step", watched)
            list(source.prepare())
            for _ in range(7):
                source.refresh(make_net(2))
            return seen

        falling = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
        got = factors(make_source(tmp_path / "cosine", cosine_steps=4))
        assert got == pytest.approx([1.0] * 4 + falling + [0.0] * 3)
        assert min(got) == 0.0  # not a rounding error below
        assert factors(make_source(tmp_path / "constant")) == [1.0] * 11


class TestBatch:
    def test_half_is_made_and_half_is_chosen(self, tmp_path: Path) -> None:
        source = make_ready(tmp_path)
        batch = source.batch(13)
        assert batch.shape == (13, 1, 8, 8) and batch.dtype == torch.float32
        assert float(batch.min()) >= 0 and float(batch.max()) <= 1
        stored = set(map(str, (rows_of(source.bank).float() / 255).tolist()))
        known = [str(image) in stored for image in batch.tolist()]
        assert known == [False] * 6 + [True] * 7
        chosen = set(map(str, (rows_of(source.bank)[:12].float() / 255).tolist()))
        drawn = [*batch[6:].tolist(), *source.batch(10)[5:].tolist()]
        # Two batches are one pass over the chosen rows; no sample of the warm-up is met.
        assert set(map(str, drawn)) == chosen and len(drawn) == 12

    def test_made_images_are_fresh_ones_of_the_generator_in_train_mode(
        self, tmp_path: Path
    ) -> None:
        source = make_ready(tmp_path)
        random = torch.Generator()
        random.set_state(source.random.get_state())
        batches = [source.batch(8)[:4] for _ in range(2)]
        assert not torch.equal(*batches) and not batches[0].requires_grad
        generator = source.game.generator
        assert generator.training
        with torch.no_grad():
            expected = [generator(torch.randn(4, 7, generator=random)) for _ in range(2)]
        for own, other in zip(batches, expected, strict=True):
            assert torch.equal(own, other)

    def test_chosen_images_alone_are_augmented(self, tmp_path: Path) -> None:
        source = make_ready(tmp_path, spec=AUGMENTED)
        batch = source.batch(24)
        padded = (batch == 0).all(dim=3).any(dim=2) | (batch == 0).all(dim=2).any(dim=2)
        # A whole side of zeros comes from the padding: 8 of 9 crops have one.
        assert not bool(padded[:12].any()) and int(padded[12:].sum()) > 5

    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_tiny_batches(self, tmp_path: Path, size: int) -> None:
        source = make_ready(tmp_path)
        random = torch.Generator()
        random.set_state(source.random.get_state())
        batch = source.batch(size)
        assert batch.shape == (size, 1, 8, 8) and bool(batch.isfinite().all())
        with torch.no_grad():
            # A lone image would be normalised by itself.
            two = source.game.generator(torch.randn(2, 7, generator=random))
        assert torch.equal(batch[: size // 2], two[: size // 2])


def test_adopted_bank_has_fewer_open_world_rows(tmp_path: Path) -> None:
    source = make_ready(tmp_path)
    kept = torch.tensor([1, 2, 5, 8, 11, 12, 14, 20])
    bank = ImageBank(tmp_path / "kept.bin", shape=(1, 8, 8))
    bank.append(source.bank.rows(kept).float() / 255)
    chosen = set(map(str, (source.bank.rows(kept[:5]).float() / 255).tolist()))
    source.adopt(bank, kept)
    assert source.bank is bank and source.num_open_world == 5
    assert source.state_dict()["num_rows"] == 8
    drawn = source.batch(10)[5:]
    assert set(map(str, drawn.tolist())) == chosen
    source.refresh(make_net(2))
    (tmp_path / "next").mkdir()
    after = make_source(tmp_path / "next")
    after.bank.append(rows_of(bank).float() / 255)
    after.load_state_dict(source.state_dict())
    assert after.num_open_world == 5


class TestState:
    @pytest.mark.parametrize("stop", range(1, 9))
    def test_preparation_resumes_bit_identically(
        self, tmp_path: Path, stop: int, flatten: Flatten
    ) -> None:
        changes: dict[str, Any] = {"spec": AUGMENTED, "cosine_steps": 3}
        whole = make_ready(tmp_path / "whole", **changes)
        torn = make_source(tmp_path / "torn", **changes)
        parts = torn.prepare()
        for _ in range(stop):
            next(parts)
        state = torn.state_dict()
        kept = flatten(state)
        next(parts, None)  # lost with the crash
        assert flatten(state) == kept
        save_state(tmp_path / "state", state)
        torn = make_source(tmp_path / "torn", **changes)
        torn.load_state_dict(load_state(tmp_path / "state"))
        list(torn.prepare())
        assert flatten(torn.state_dict()) == flatten(whole.state_dict())
        assert torch.equal(rows_of(torn.bank), rows_of(whole.bank))

    def test_distillation_resumes_bit_identically(self, tmp_path: Path, flatten: Flatten) -> None:
        changes: dict[str, Any] = {"spec": AUGMENTED, "cosine_steps": 5}
        student = make_net(2)

        def distil(source: MosaickSource) -> list[Any]:
            met: list[Any] = []
            for _ in range(3):
                met += [source.refresh(student), source.batch(9), source.batch(9)]
            return met

        whole = make_ready(tmp_path, **changes)
        distil(whole)
        state = whole.state_dict()
        kept = flatten(state)
        expected = distil(whole)
        assert flatten(state) == kept
        torn = make_source(tmp_path, **changes)
        torn.load_state_dict(state)
        assert list(torn.prepare()) == []
        assert flatten(distil(torn)) == flatten(expected)
        assert flatten(state) == kept
        assert flatten(torn.state_dict()) == flatten(whole.state_dict())

    def test_reseeding_changes_batches_and_game_not_the_pool(self, tmp_path: Path) -> None:
        state = make_ready(tmp_path).state_dict()
        met = []
        for seed in (1, 2, 1):
            source = make_source(tmp_path)
            source.load_state_dict(state)
            source.reseed(seed)
            met.append((source.batch(8), source.refresh(make_net(2))))
            assert len(source.bank) == 21
        assert torch.equal(met[0][0], met[2][0]) and met[0][1] == met[2][1]
        for half in (slice(0, 4), slice(4, 8)):
            assert not torch.equal(met[0][0][half], met[1][0][half])
        assert met[0][1] != met[1][1]

    def test_reseeded_streams_go_on_from_a_checkpoint(self, tmp_path: Path) -> None:
        source = make_ready(tmp_path)
        source.reseed(3)
        source.batch(5), source.refresh(make_net(2))
        state = source.state_dict()
        resumed = make_source(tmp_path, seed=3)
        resumed.load_state_dict(state)
        for _ in range(4):
            assert source.refresh(make_net(2)) == resumed.refresh(make_net(2))
            assert torch.equal(source.batch(5), resumed.batch(5))

    def test_students_and_game_meet_the_rows_in_orders_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = make_ready(tmp_path)
        source.reseed(3)
        real: list[Tensor] = []
        monkeypatch.setattr(source.game, "step", lambda _, images, *__, **___: real.append(images))
        source.refresh(make_net(2))
        assert not torch.equal(real[0], source.batch(12)[6:])

    def test_seed_decides_all_and_the_global_stream_is_left_alone(
        self, tmp_path: Path, flatten: Flatten
    ) -> None:
        one, two = make_source(tmp_path / "one"), make_source(tmp_path / "two")
        other = make_source(tmp_path / "other", seed=6)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        list(one.prepare())
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        list(two.prepare())
        list(other.prepare())
        assert flatten(one.state_dict()) == flatten(two.state_dict())
        assert torch.equal(rows_of(one.bank), rows_of(two.bank))
        assert not torch.equal(rows_of(one.bank)[12:], rows_of(other.bank)[12:])


def test_criterion(tmp_path: Path) -> None:
    assert make_source(tmp_path).params.temperature == 1.0
    criterion = make_source(tmp_path, temperature=4.0).criterion()
    assert isinstance(criterion, SoftLabelCriterion) and criterion.temperature == 4.0


def test_each_weight_and_rate_reaches_the_game(tmp_path: Path) -> None:
    weights = {"local": 0.1, "align": 0.2, "balance": 0.3, "adversarial": 0.4}
    changes = {f"{name}_weight": weight for name, weight in weights.items()}
    source = make_ready(tmp_path, learning_rate=0.02, **changes)
    readings = source.refresh(make_net(2))
    assert readings["generator_loss"] == pytest.approx(
        sum(weight * readings[name] for name, weight in weights.items()), rel=1e-5
    )
    assert all(each.param_groups[0]["lr"] == 0.02 for each in source.game._optimizers.values())


def test_nets_have_the_asked_widths_and_at_the_defaults_the_reference_sizes(
    tmp_path: Path,
) -> None:
    small = make_source(tmp_path).game
    assert small.generator.linear.in_features == 7 and small.generator.start_shape == (16, 2, 2)
    assert small.discriminator.layers[0].out_channels == 4
    spec = DatasetSpec("big", 3, 32, 3, (0.5,) * 3, (0.5,) * 3, 4, True, ("a", "b", "c"))
    teacher = PixelModel(LinearNet(1), mean=spec.mean, std=spec.std)
    bank = ImageBank(tmp_path / "big.bin", shape=(3, 32, 32))
    context = SourceContext(teacher, spec, bank, 0, 0.9, make_pool)
    game = MosaickSource(context, Mosaick(num_selected=10)).game
    sizes = [
        sum(w.numel() for w in net.parameters()) for net in (game.generator, game.discriminator)
    ]
    assert sizes == [2_026_051, 531_328]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_selected": 0},
        {"score_batch_size": 0},
        {"batch_size": 1},
        {"warmup_steps": 0},
        {"num_samples": 0},
        {"distillation_steps_per_game_step": 0},
        {"cosine_steps": 0},
    ],
)
def test_misuse_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_source(tmp_path, **changes)
