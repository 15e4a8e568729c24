from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdci.deconfounding.compensation import Compensation
from kdci.errors import NumericError
from kdci.models import PixelModel, build_backbone
from kdci.store.checkpoints import Checkpoints
from kdci.substitution.base import StudentCriterion
from tests.kdci.training._runs import (
    BATCH_SIZE,
    NUM_STEPS,
    STEPS_PER_EPOCH,
    STUDENT_SEED,
    TEACHER_SEED,
    Flatten,
    MakeModel,
    Run,
    StubSource,
    equal_weights,
    make_compensation,
    make_run,
    outcome,
)


def test_a_student_that_asks_for_a_version_is_resumed(
    tiny_model: MakeModel, tmp_path: Path
) -> None:
    """MNASNet reads no tensors without it, and a checkpoint has plain tensors alone."""

    def run(seed: int) -> Run:
        torch.manual_seed(seed)
        backbone = build_backbone("torchvision-mnasnet0_5", num_classes=3, channels=1)
        student = PixelModel(backbone, mean=(0.4,), std=(0.3,))
        return make_run(tiny_model, tmp_path / str(seed), student=student)

    whole, resumed = run(1), run(2)
    Checkpoints(tmp_path).save(1, whole.distiller.state_dict())
    state = Checkpoints(tmp_path).load_newest()
    assert state is not None
    resumed.distiller.load_state_dict(state)
    assert equal_weights(resumed.distiller.student, whole.distiller.student)


CASES = [
    ("fast", "vanilla"),
    ("fast", "kdci"),
    ("fast", "random lambda"),
    ("dfnd", "vanilla"),
    ("dfnd", "kdci"),
    ("dfnd", "random lambda"),
]


class TestVanilla:
    @pytest.mark.parametrize("source", ["stub", "fast"])
    def test_equals_a_hand_written_loop_bit_for_bit(
        self, tmp_path: Path, tiny_model: MakeModel, source: str
    ) -> None:
        """No dictionary, no difference: plain distillation and nothing else."""
        run = make_run(tiny_model, tmp_path / "ours", source, weight_decay=5e-4).advance()
        teacher = tiny_model(TEACHER_SEED).eval()
        student = tiny_model(STUDENT_SEED)
        velocity = [torch.zeros_like(weight) for weight in student.parameters()]
        temperature = 4.0 if source == "stub" else 20.0
        losses = []
        for step, images in enumerate(run.batches):
            student.train()
            with torch.no_grad():
                target = F.log_softmax(teacher(images).logits / temperature, dim=1)
            output = F.log_softmax(student(images).logits / temperature, dim=1)
            divergence = F.kl_div(output, target, reduction="batchmean", log_target=True)
            loss = temperature**2 * divergence
            losses.append(float(loss.detach()))
            rate = 0.1 * (1 + math.cos(math.pi * step / NUM_STEPS)) / 2
            gradients = torch.autograd.grad(loss, list(student.parameters()))
            with torch.no_grad():
                for weight, speed, gradient in zip(
                    student.parameters(), velocity, gradients, strict=True
                ):
                    gradient = gradient.add(weight, alpha=5e-4)
                    speed.mul_(0.9).add_(gradient)
                    weight.add_(speed, alpha=-rate)
        assert len(run.batches) == NUM_STEPS
        assert equal_weights(run.distiller.student, student)
        means = [sum(losses[i : i + STEPS_PER_EPOCH]) / STEPS_PER_EPOCH for i in (0, 3, 6)]
        assert [row["loss"] for _, row in run.rows] == means

    def test_kdci_meets_the_same_student_and_images(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        runs = [
            make_run(tiny_model, tmp_path / name, "dfnd", name)
            for name in ("vanilla", "kdci", "random lambda")
        ]
        first = runs[0]
        for other in runs[1:]:
            assert equal_weights(first.distiller.student, other.distiller.student)
        for run in runs:
            run.advance()
        for other in runs[1:]:
            pairs = zip(first.batches, other.batches, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs) and len(first.batches) == NUM_STEPS
            assert not equal_weights(first.distiller.student, other.distiller.student)

    def test_kdci_meets_the_same_images_until_they_answer_to_the_student(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        vanilla, kdci = (
            make_run(tiny_model, tmp_path / name, "fast", name).advance()
            for name in ("vanilla", "kdci")
        )
        for a, b in zip(vanilla.batches[:3], kdci.batches[:3], strict=True):
            assert torch.equal(a, b)
        states = [run.distiller.source.state_dict() for run in (vanilla, kdci)]
        assert torch.equal(states[0]["random"], states[1]["random"])
        assert states[0]["rows"] == states[1]["rows"]

    def test_a_prior_of_nothing_trains_the_same_student(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        """Centred proportions of a balanced pool: F(z) = 0 in every step."""
        balanced = Compensation(
            torch.randn(4, 3), torch.full((4,), 0.25), num_classes=3, proportions="centred"
        )
        vanilla = make_run(tiny_model, tmp_path / "a").advance()
        kdci = make_run(tiny_model, tmp_path / "b", compensation=balanced).advance()
        assert equal_weights(vanilla.distiller.student, kdci.distiller.student)

    @pytest.mark.parametrize(("source", "variant"), CASES)
    def test_same_seed_twice_same_bytes(
        self, tmp_path: Path, tiny_model: MakeModel, flatten: Flatten, source: str, variant: str
    ) -> None:
        outcomes: list[dict[str, object]] = []
        for name in ("one", "two"):
            torch.manual_seed(len(outcomes))  # no part of it draws from the global stream
            before = torch.get_rng_state()
            run = make_run(tiny_model, tmp_path / name, source, variant).advance()
            assert torch.equal(torch.get_rng_state(), before)
            outcomes.append(outcome(run, flatten))
        assert outcomes[0] == outcomes[1]


class TestResume:
    """R3: going on in the same process against fresh objects restored from disk."""

    @pytest.mark.parametrize(("source", "variant"), CASES)
    @pytest.mark.parametrize("stop", [1, 3, 5])
    def test_continues_bit_for_bit(
        self,
        tmp_path: Path,
        tiny_model: MakeModel,
        flatten: Flatten,
        source: str,
        variant: str,
        stop: int,
    ) -> None:
        """After the first step, at an epoch's end, and within an epoch."""
        whole = make_run(tiny_model, tmp_path, source, variant).advance(stop)
        Checkpoints(tmp_path).save(stop, whole.distiller.state_dict())
        logged = whole.rows[:]
        expected = outcome(whole.advance(NUM_STEPS - stop), flatten)

        torch.manual_seed(99)
        resumed = restored(tiny_model, tmp_path, source, variant)
        resumed.distiller.load_state_dict(newest(tmp_path))
        resumed.rows.extend(logged)
        resumed.advance(NUM_STEPS - stop)
        for a, b in zip(whole.batches[stop:], resumed.batches, strict=True):
            assert torch.equal(a, b)
        assert whole.rates[stop:] == resumed.rates
        assert outcome(resumed, flatten) == expected

    @pytest.mark.parametrize(
        ("source", "variant", "dropped"),
        [
            ("dfnd", "kdci", "student"),
            ("dfnd", "kdci", "compensation"),
            ("dfnd", "random lambda", "compensation/_extra_state"),
            ("dfnd", "vanilla", "optimizer"),
            ("dfnd", "vanilla", "criterion"),
            ("dfnd", "vanilla", "criterion_optimizer"),
            ("dfnd", "vanilla", "step"),
            ("dfnd", "vanilla", "means"),
            ("dfnd", "vanilla", "source/random"),
            ("dfnd", "vanilla", "source/rows"),
            ("fast", "vanilla", "refreshed"),
            ("fast", "vanilla", "source/random"),
            ("fast", "vanilla", "source/rows"),
            ("fast", "vanilla", "source/calls"),
            ("fast", "vanilla", "source/remembered"),
            ("fast", "vanilla", "source/meta/generator"),
            ("fast", "vanilla", "source/meta/moments"),
        ],
    )
    def test_the_oracle_sees_each_part_that_is_lost(
        self,
        tmp_path: Path,
        tiny_model: MakeModel,
        flatten: Flatten,
        source: str,
        variant: str,
        dropped: str,
    ) -> None:
        """Mutation check: the same comparison fails once a part starts anew."""
        stop = 5
        whole = make_run(tiny_model, tmp_path, source, variant).advance(stop)
        Checkpoints(tmp_path).save(stop, whole.distiller.state_dict())
        logged = whole.rows[:]
        expected = outcome(whole.advance(NUM_STEPS - stop), flatten)
        resumed = restored(tiny_model, tmp_path, source, variant)
        lost = replaced(newest(tmp_path), resumed.distiller.state_dict(), dropped)
        resumed.distiller.load_state_dict(lost)
        resumed.rows.extend(logged)
        resumed.advance(NUM_STEPS - resumed.distiller.step)
        assert outcome(resumed, flatten) != expected


def restored(make_model: MakeModel, folder: Path, source: str, variant: str) -> Run:
    """Return fresh objects that find the bank as the run in ``folder`` left it in the end."""
    (folder / "restored").mkdir()
    shutil.copyfile(folder / "bank.bin", folder / "restored" / "bank.bin")
    return make_run(make_model, folder / "restored", source, variant, prepare=False)


def newest(folder: Path) -> dict[str, Any]:
    state = Checkpoints(folder).load_newest()
    assert state is not None
    return state


def replaced(state: dict[str, Any], fresh: dict[str, Any], path: str) -> dict[str, Any]:
    """Return ``state`` with the entry at ``path`` as a fresh run has it."""
    key, _, rest = path.partition("/")
    value = replaced(state[key], fresh[key], rest) if rest else fresh[key]
    return {**state, key: value}


class TestLoop:
    def test_refresh_once_an_epoch_at_its_start_with_the_raw_student(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        source = StubSource()
        run = make_run(tiny_model, tmp_path, source, "kdci").advance()
        assert [at for at, _ in source.refreshed_with] == [0, 3, 6]
        assert all(student is run.distiller.student for _, student in source.refreshed_with)

    def test_refresh_every_so_many_steps_where_the_method_asks_for_it(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        source = StubSource()
        source.refresh_period = 2
        run = make_run(tiny_model, tmp_path, source, None).advance()
        assert [at for at, _ in source.refreshed_with] == [0, 2, 4, 6, 8]
        # Refreshes 1 and 2 fall into the first epoch, 3 into the second, 4 and 5 into the last.
        assert [row["inversion_loss"] for _, row in run.rows] == [1.5, 3.0, 4.5]

    def test_metrics_are_the_means_of_each_epoch(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        run = make_run(tiny_model, tmp_path, "stub", "kdci").advance()
        assert [step for step, _ in run.rows] == [3, 6, 9]
        assert [row["epoch"] for _, row in run.rows] == [1, 2, 3]
        assert [row["inversion_loss"] for _, row in run.rows] == [1, 2, 3]
        assert [row["learning_rate"] for _, row in run.rows] == [r[0] for r in run.rates[2::3]]
        for _, row in run.rows:
            assert row["bank"] == 77 and row["loss"] == row["kl"] > 0
            assert 0 <= row["agreement"] <= 100 and 0.25 <= row["lambda_max"] <= 1
            assert row["prior_norm"] > 0
            assert all(math.isfinite(value) for value in row.values())

    def test_agreement_by_hand(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path, "stub", num_epochs=1, steps_per_epoch=1)
        assert next(run.distiller.run()) == 1
        (images,) = run.batches
        teacher = run.distiller.teacher(images).logits.argmax(dim=1)
        student = tiny_model(STUDENT_SEED)(images).logits.argmax(dim=1)
        matches = sum(int(a) == int(b) for a, b in zip(student, teacher, strict=True))
        assert run.rows[0][1]["agreement"] == pytest.approx(100 * matches / BATCH_SIZE)

    def test_phi_stands_for_the_student_in_every_term(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        seen: list[tuple[Tensor, Tensor]] = []

        class Criterion(StudentCriterion):
            def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
                seen.append((student, teacher))
                return {"a": student.square().mean(), "b": student.sum()}

        run = make_run(tiny_model, tmp_path, StubSource(Criterion()), "kdci")
        fresh, phi = tiny_model(STUDENT_SEED), make_compensation("kdci")
        assert phi is not None
        next(run.distiller.run())
        expected = phi(fresh(run.batches[0]).logits)
        student, teacher = seen[0]
        assert torch.equal(student, expected) and student.requires_grad
        expected_teacher = run.distiller.teacher(run.batches[0]).logits
        assert torch.equal(teacher, expected_teacher) and not teacher.requires_grad
        means = run.distiller.means.totals
        assert means["loss"] == pytest.approx(means["a"] + means["b"])

    def test_yields_the_steps_taken(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path)
        assert list(run.distiller.run()) == list(range(1, NUM_STEPS + 1))
        assert list(run.distiller.run()) == []

    def test_the_teacher_is_not_touched(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path, "fast", "kdci").advance()
        assert equal_weights(run.distiller.teacher, tiny_model(TEACHER_SEED))
        assert all(weight.grad is None for weight in run.distiller.teacher.parameters())
        assert not run.distiller.teacher.training and run.distiller.student.training

    def test_the_dictionary_is_not_trained(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path, "stub", "kdci").advance()
        trained, before = run.distiller.compensation, make_compensation("kdci")
        assert trained is not None and before is not None
        assert torch.equal(trained.prototypes_ND, before.prototypes_ND)
        assert torch.equal(trained.factors_N, before.factors_N)
        for name, weight in trained.named_parameters():
            assert not torch.equal(weight, before.get_parameter(name))

    def test_distillation_brings_the_student_nearer(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        for variant in ("vanilla", "kdci"):
            run = make_run(tiny_model, tmp_path, "stub", variant, num_epochs=20)
            list(run.distiller.run())
            assert run.rows[-1][1]["loss"] < 0.5 * run.rows[0][1]["loss"]


class TestOptimisers:
    def test_cosine_by_hand(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path, final_learning_rate=0.02).advance()
        expected = [0.02 + 0.08 * (1 + math.cos(math.pi * s / 9)) / 2 for s in range(9)]
        assert [rates[0] for rates in run.rates] == pytest.approx(expected)

    def test_milestones_by_hand(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path, num_epochs=2, steps_per_epoch=5, schedule="milestones")
        rates = [run.distiller.optimizer.param_groups[0]["lr"] for _ in run.distiller.run()]
        assert rates == pytest.approx([0.1] * 4 + [0.01] * 4 + [0.001] * 2)

    def test_the_compensation_has_a_rate_of_its_own(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        own = make_run(
            tiny_model, tmp_path, "stub", "kdci", compensation_learning_rate=0.5
        ).advance()
        for step, (student, compensation) in enumerate(own.rates):
            factor = (1 + math.cos(math.pi * step / 9)) / 2
            assert student == pytest.approx(0.1 * factor)
            assert compensation == pytest.approx(0.5 * factor)
        shared = make_run(tiny_model, tmp_path, "stub", "kdci").advance()
        assert all(student == compensation for student, compensation in shared.rates)

    def test_every_weight_is_in_one_group(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        distiller = make_run(tiny_model, tmp_path, "dfnd", "kdci").distiller
        assert distiller.compensation is not None and distiller.criterion_optimizer is not None
        groups = [group["params"] for group in distiller.optimizer.param_groups]
        expected = [distiller.student.parameters(), distiller.compensation.parameters()]
        for group, weights in zip(groups, expected, strict=True):
            assert [id(w) for w in group] == [id(w) for w in weights]
        (noise,) = distiller.criterion_optimizer.param_groups[0]["params"]
        assert noise is distiller.criterion.noise_scores

    def test_adam_trains_the_noise_matrix_beside_the_student(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        """Adam's first step is its rate in size, whatever the gradient (but for none at all)."""
        run = make_run(tiny_model, tmp_path, "dfnd").advance(1)
        scores = run.distiller.criterion.get_parameter("noise_scores")
        noise = scores.detach().clone()
        moved = noise[noise != 0].abs()
        assert len(moved) >= 4
        torch.testing.assert_close(moved, torch.full_like(moved, 0.05), atol=1e-4, rtol=0)
        run.advance(1)
        assert not torch.equal(scores, noise)

    def test_a_criterion_without_parameters_has_no_optimiser(
        self, tmp_path: Path, tiny_model: MakeModel
    ) -> None:
        distiller = make_run(tiny_model, tmp_path).distiller
        assert distiller.criterion_optimizer is None
        assert distiller.state_dict()["criterion_optimizer"] is None


class Terms(StudentCriterion):
    """Terms of chosen values, from one step on."""

    def __init__(self, values: dict[str, float], *, at_step: int) -> None:
        super().__init__()
        self.values, self.at_step, self.calls = values, at_step, 0

    def forward(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        base = student.square().mean()
        bad = self.calls == self.at_step
        return {k: base * 0 + v if bad else base for k, v in self.values.items()}


class TestNotFinite:
    """R9."""

    @pytest.mark.parametrize(
        ("values", "named"),
        [
            ({"kl": 1.0, "nll": math.nan}, "nll"),
            ({"kl": math.inf, "nll": 1.0}, "kl"),
            ({"kl": 3e38, "nll": 3e38}, "loss"),
        ],
    )
    def test_stops_within_the_step_and_names_the_term(
        self, tmp_path: Path, tiny_model: MakeModel, values: dict[str, float], named: str
    ) -> None:
        run = make_run(tiny_model, tmp_path, StubSource(Terms(values, at_step=5)))
        steps = run.distiller.run()
        for _ in range(4):
            next(steps)
        weights = {k: v.clone() for k, v in run.distiller.student.named_parameters()}
        with pytest.raises(NumericError, match=f"distill step 5: .*'{named}' is ") as caught:
            next(steps)
        assert caught.value.exit_code == 5 and run.distiller.step == 4
        for name, weight in run.distiller.student.named_parameters():
            assert torch.equal(weight, weights[name])
        assert len(run.rows) == 1  # the epoch that ended, nothing of the one that failed

    def test_an_image_that_is_not_finite(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        source = StubSource()
        run = make_run(tiny_model, tmp_path, source).advance(1)
        draw = source.batch
        source.batch = lambda size: draw(size).fill_(math.nan)  # type: ignore[method-assign]
        with pytest.raises(NumericError, match="distill step 2: .*'kl' is nan"):
            next(run.distiller.run())

    def test_a_teacher_that_is_not_finite(self, tmp_path: Path, tiny_model: MakeModel) -> None:
        run = make_run(tiny_model, tmp_path)
        run.distiller.teacher.get_parameter("backbone.head.bias").fill_(math.nan)
        with pytest.raises(NumericError, match="distill step 1: .*'kl' is nan"):
            next(run.distiller.run())

    @pytest.mark.parametrize("variant", ["vanilla", "kdci"])
    def test_a_learning_rate_out_of_all_bounds(
        self, tmp_path: Path, tiny_model: MakeModel, variant: str
    ) -> None:
        """The run ends by itself as soon as a term is lost, long before its last step."""
        run = make_run(tiny_model, tmp_path, "stub", variant, learning_rate=1e9, num_epochs=40)
        with pytest.raises(NumericError, match="lower the student's learning_rate"):
            list(run.distiller.run())
        assert run.distiller.step < 30
        for _, row in run.rows:
            assert all(math.isfinite(value) for value in row.values())
