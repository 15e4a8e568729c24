from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import NumericError, UserError
from kdci.methods.dfnd import Dfnd, DfndSource, NoisyStudentCriterion
from kdci.models import PixelModel, Prediction
from kdci.substitution.base import SourceContext
from tests.kdci._tensor_pool import TensorPool

SPEC = DatasetSpec("tiny", 3, 4, 1, (0.5,), (0.5,), 1, True, ("a", "b", "c"))


class LinearTeacher(nn.Module):
    """Counts the images it was shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(16, 3)
        self.shown = 0

    def forward(self, images: Tensor) -> Prediction:
        self.shown += len(images)
        features = images.flatten(1)
        return Prediction(self.linear(features), features)


def make_pool(num_images: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 1, 4, 4), generator=generator, dtype=torch.uint8)


def make_source(
    folder: Path, *, pool: Tensor | None = None, num_selected: int = 12, batch: int = 2
) -> DfndSource:
    chosen = make_pool() if pool is None else pool
    teacher = PixelModel(LinearTeacher(), mean=SPEC.mean, std=SPEC.std).eval()
    bank = ImageBank(folder / "tail.bin", shape=(1, 4, 4))
    context = SourceContext(
        teacher=teacher,
        spec=SPEC,
        bank=bank,
        seed=7,
        teacher_accuracy=0.9,
        open_world=lambda: TensorPool(chosen),
    )
    return DfndSource(context, Dfnd(num_selected=num_selected, score_batch_size=batch))


def naive_choice(source: DfndSource, pool: Tensor, num_selected: int) -> list[int]:
    costs = []
    for row in range(len(pool)):
        logits = source.context.teacher(pool[row : row + 1].float() / 255).logits[0]
        costs.append((-float(torch.softmax(logits.detach().double(), 0).max().log()), row))
    return sorted(row for _, row in sorted(costs)[:num_selected])


class TestNoisyStudentCriterion:
    def test_rows_sum_to_one_around_a_fixed_diagonal(self) -> None:
        criterion = NoisyStudentCriterion(5, teacher_accuracy=0.8)
        even = criterion.log_noise().exp()
        expected = torch.full((5, 5), 0.2 / 4).fill_diagonal_(0.8)
        torch.testing.assert_close(even, expected)
        nn.init.normal_(criterion.noise_scores, generator=torch.Generator().manual_seed(0))
        learned = criterion.log_noise().exp()
        torch.testing.assert_close(learned.sum(1), torch.ones(5))
        torch.testing.assert_close(learned.diagonal(), torch.full((5,), 0.8))

    def test_matrix_and_nll_equal_a_naive_loop(self) -> None:
        generator = torch.Generator().manual_seed(2)
        criterion = NoisyStudentCriterion(4, teacher_accuracy=0.7)
        nn.init.normal_(criterion.noise_scores, generator=generator)
        scores = criterion.noise_scores.detach()
        noise = torch.zeros(4, 4)
        for row in range(4):
            errors = (0.3 * torch.softmax(scores[row], 0)).tolist()
            for column in range(4):
                noise[row, column] = 0.7 if column == row else errors.pop(0)
        torch.testing.assert_close(criterion.log_noise().exp(), noise)
        student, teacher = torch.randn(2, 6, 4, generator=generator)
        labelled = torch.softmax(student, 1) @ noise
        expected = -sum(
            labelled[row, int(teacher[row].argmax())].log() for row in range(6)
        ) / torch.tensor(6.0)
        terms = criterion(student, teacher)
        assert set(terms) == {"kl", "nll"}
        torch.testing.assert_close(terms["nll"], expected)

    def test_kl_is_sixteen_times_at_temperature_four(self) -> None:
        student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2))
        p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
        expected = 16 * (p * (p / q).log()).sum() / 6
        terms = NoisyStudentCriterion(4, teacher_accuracy=0.7)(student, teacher)
        torch.testing.assert_close(terms["kl"], expected)

    def test_extreme_logits_stay_finite(self) -> None:
        criterion = NoisyStudentCriterion(3, teacher_accuracy=0.999)
        with torch.no_grad():
            criterion.noise_scores[:, 0] = 500.0  # softmax underflows to 0 beside it
        student = torch.tensor([[1e4, 0.0, 0.0]], requires_grad=True)
        terms = criterion(student, torch.tensor([[0.0, 0.0, 1e4]]))
        (terms["kl"] + terms["nll"]).backward()
        assert bool(terms["nll"].isfinite())
        for leaf in (student, criterion.noise_scores):
            assert leaf.grad is not None and bool(leaf.grad.isfinite().all())

    def test_matrix_learns_the_teacher_does_not(self) -> None:
        criterion = NoisyStudentCriterion(3, teacher_accuracy=0.6, learning_rate=0.5)
        assert criterion.learning_rate == 0.5
        student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        teacher = torch.tensor([[5.0, 0.0, 0.0]] * 4, requires_grad=True)
        sum(criterion(student, teacher).values()).backward()
        assert criterion.noise_scores.grad is not None and bool(criterion.noise_scores.grad.any())
        assert student.grad is not None and teacher.grad is None

    @pytest.mark.parametrize("accuracy", [0.0, 1.0, -0.1, 95.0])
    def test_accuracy_must_be_a_fraction(self, accuracy: float) -> None:
        with pytest.raises(ValueError, match="teacher_accuracy"):
            NoisyStudentCriterion(3, teacher_accuracy=accuracy)


class TestDfndSource:
    def test_keeps_the_most_confident_in_pool_order(self, tmp_path: Path) -> None:
        source, pool = make_source(tmp_path), make_pool()
        reports = list(source.prepare())
        expected = naive_choice(source, pool, 12)
        assert torch.equal(source.bank.rows(torch.arange(12)), pool[expected])
        assert [report["scored"] for report in reports[:-1]] == [20.0, 40.0, 50.0]
        assert reports[-1]["bank"] == 12.0
        assert reports[-1]["selected_score"] < reports[-2]["score"]
        assert list(source.prepare()) == []

    def test_of_equal_scores_the_earlier_image_is_kept(self, tmp_path: Path) -> None:
        pool = make_pool(1).repeat(40, 1, 1, 1)
        pool[:, :, :, 0] = make_pool(1)[:, :, :, 0]
        source = make_source(tmp_path, pool=pool, num_selected=5)
        # The score can not tell these images apart: only the second pixel row differs.
        with torch.no_grad():
            source.context.teacher.backbone.linear.weight[:, 4:8] = 0.0
        pool[:, 0, 1] = torch.arange(160, dtype=torch.uint8).view(40, 4)
        list(source.prepare())
        assert torch.equal(source.bank.rows(torch.arange(5)), pool[:5])

    def test_too_small_a_pool_is_refused_before_scoring(self, tmp_path: Path) -> None:
        source = make_source(tmp_path, num_selected=51)
        with pytest.raises(UserError, match="methods.dfnd.num_selected: is 51, .* 50 images"):
            next(source.prepare())
        assert source.context.teacher.backbone.shown == 0

    def test_resumes_a_half_scored_pool(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        whole = make_source(tmp_path / "a")
        list(whole.prepare())
        first = make_source(tmp_path / "b")
        next(first.prepare())
        state = first.state_dict()
        second = make_source(tmp_path / "b")
        second.load_state_dict(state)
        list(second.prepare())
        assert second.context.teacher.backbone.shown == 30
        rows = torch.arange(12)
        assert torch.equal(whole.bank.rows(rows), second.bank.rows(rows))

    def test_resumed_batches_are_the_same(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        list(source.prepare())
        source.batch(8)
        state = source.state_dict()
        expected = [source.batch(8) for _ in range(3)]
        resumed = make_source(tmp_path)
        resumed.load_state_dict(state)
        assert list(resumed.prepare()) == []
        for batch in expected:
            assert torch.equal(resumed.batch(8), batch)

    def test_reseeding_changes_batches_not_the_choice(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        list(source.prepare())
        batches = []
        for seed in (1, 2, 1):
            source.reseed(seed)
            batches.append(source.batch(8))
        assert torch.equal(batches[0], batches[2]) and not torch.equal(batches[0], batches[1])
        assert len(source.bank) == 12

    def test_a_stated_accuracy_wins_over_the_teachers_card(self, tmp_path: Path) -> None:
        context = make_source(tmp_path).context
        stated = DfndSource(context, Dfnd(num_selected=3, teacher_accuracy=0.5))
        assert stated.teacher_accuracy == 0.5
        with pytest.raises(ValueError, match="teacher_accuracy"):
            DfndSource(context, Dfnd(num_selected=3, teacher_accuracy=1.0))

    def test_batch_and_refresh(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        list(source.prepare())
        state = source.state_dict()
        assert source.refresh(source.context.teacher) == {}
        assert len(source.bank) == 12 and torch.equal(
            source.state_dict()["random"], state["random"]
        )
        batch = source.batch(32)
        assert batch.shape == (32, 1, 4, 4) and batch.dtype == torch.float32
        assert float(batch.min()) >= 0.0 and 0.5 < float(batch.max()) <= 1.0

    def test_broken_teacher_is_reported(self, tmp_path: Path) -> None:
        source = make_source(tmp_path)
        with torch.no_grad():
            source.context.teacher.backbone.linear.bias.fill_(float("nan"))
        with pytest.raises(NumericError, match="not finite"):
            next(source.prepare())

    def test_criterion_is_the_noisy_one(self, tmp_path: Path) -> None:
        criterion = make_source(tmp_path).criterion()
        assert isinstance(criterion, NoisyStudentCriterion)
        assert criterion.noise_scores.shape == (3, 2) and not bool(criterion.noise_scores.any())
        assert (criterion.teacher_accuracy, criterion.temperature) == (0.9, 4.0)
        assert criterion.learning_rate == 1e-3


def test_auto_needs_a_teacher_that_states_its_accuracy(tmp_path: Path) -> None:
    stated = make_source(tmp_path).context
    silent = replace(stated, teacher_accuracy=None)
    assert DfndSource(stated, Dfnd(num_selected=12)).teacher_accuracy == 0.9
    assert DfndSource(silent, Dfnd(num_selected=12, teacher_accuracy=0.7)).teacher_accuracy == 0.7
    with pytest.raises(UserError, match=r"methods\.dfnd\.teacher_accuracy: auto needs"):
        DfndSource(silent, Dfnd(num_selected=12))
