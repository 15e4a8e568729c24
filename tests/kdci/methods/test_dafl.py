from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.errors import NumericError
from kdci.methods.dafl import Dafl, DaflSource
from kdci.models import PixelModel, Prediction
from kdci.substitution.base import SoftLabelCriterion, SourceContext
from kdci.training.losses import activation_loss

SPEC = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))


class TinyNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Prediction:
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        return Prediction(3 * self.head(features), features)


def make_teacher() -> PixelModel:
    teacher = PixelModel(TinyNet(), mean=SPEC.mean, std=SPEC.std)
    teacher(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return teacher.eval()


def make_source(folder: Path, **changes: Any) -> DaflSource:
    folder.mkdir(exist_ok=True)
    bank = ImageBank(folder / "tail.bin", shape=(1, 8, 8))
    context = SourceContext(make_teacher(), SPEC, bank, 5, 0.9, lambda: torch.empty(0))
    small: dict[str, Any] = {
        "latent_dim": 7,
        "generator_width": 4,
        "batch_size": 6,
        "num_steps": 5,
        "sample_every": 2,
    }
    return DaflSource(context, Dafl(**{**small, **changes}))


def naive_terms(logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three losses of the paper, a number at a time."""
    probabilities = torch.softmax(logits, 1)
    one_hot = torch.zeros(())
    for row in probabilities:
        one_hot = one_hot - row.max().log() / len(probabilities)
    activation = torch.zeros(())
    for value in features.flatten():
        activation = activation - value.abs() / features.numel()
    entropy = torch.zeros(())
    for column in probabilities.T:
        share = column.sum() / len(column)
        entropy = entropy + share * share.log()
    return one_hot, activation, entropy


def test_activation_loss_by_hand() -> None:
    features = torch.tensor([[1.0, -2.0], [0.0, 5.0]], requires_grad=True)
    loss = activation_loss(features)
    assert loss.item() == -2.0
    loss.backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[-0.25, 0.25], [0.0, -0.25]]


@pytest.mark.parametrize("kind", ["small", "original"])
def test_training_equals_a_naive_implementation(tmp_path: Path, kind: str) -> None:
    source = make_source(tmp_path, generator=kind, learning_rate=0.01, activation_weight=0.5)
    generator, teacher = copy.deepcopy(source.generator), make_teacher()
    random = torch.Generator()
    random.set_state(source.random.get_state())
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01, betas=(0.5, 0.999))
    scale, shift = (1.0, 0.0) if kind == "small" else (0.3, 0.4)

    def images() -> Tensor:
        latents = torch.randn(6, 7, generator=random)
        made: Tensor = generator(latents)
        return made * scale + shift

    sampled, losses = [], []
    for part in (2, 2, 1):
        of_part = []
        for _ in range(part):
            one_hot, activation, entropy = naive_terms(*teacher(images()))
            loss = one_hot + 0.5 * activation + 20.0 * entropy
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            of_part.append(float(loss.detach()))
        losses.append(sum(of_part) / part)
        sampled.append(images().detach().clamp(0, 1))
    metrics = list(source.prepare())
    assert source.num_preparations == len(metrics) == 3
    assert [row["bank"] for row in metrics] == [6.0, 12.0, 18.0]
    assert [row["generator_loss"] for row in metrics] == pytest.approx(losses, rel=1e-4)
    # Compared by what they make: a bias before a BatchNorm has no effect, and no gradient but
    # rounding errors, which Adam turns into whole steps.
    latents = torch.randn(9, 7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(source.generator(latents), generator(latents), rtol=1e-3, atol=1e-4)
    kept = source.bank.rows(torch.arange(18)).float() / 255
    torch.testing.assert_close(kept, torch.cat(sampled), atol=1.1 / 255, rtol=0)


def test_terms_have_the_bounds_that_their_formulas_give(tmp_path: Path) -> None:
    (first, *_) = make_source(tmp_path).prepare()
    assert 0 < first["one_hot"] <= math.log(3)
    assert first["activation"] < 0
    assert -math.log(3) - 1e-6 <= first["entropy"] < 0


def test_only_the_generator_learns(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    teacher = source.context.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    weights = [weight.detach().clone() for weight in source.generator.parameters()]
    list(source.prepare())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(weight.grad is None and weight.requires_grad for weight in teacher.parameters())
    pairs = zip(weights, source.generator.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)


def test_unformed_images_can_be_left_out(tmp_path: Path) -> None:
    source = make_source(tmp_path, skip_steps=2)
    metrics = list(source.prepare())
    assert [row["bank"] for row in metrics] == [0.0, 6.0, 12.0]


def test_the_student_changes_nothing(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    list(source.prepare())
    state = source.random.get_state()
    assert source.refresh(make_teacher()) == {}
    assert len(source.bank) == 18 and torch.equal(source.random.get_state(), state)


def test_batches_are_the_pool_itself_unless_asked(tmp_path: Path) -> None:
    plain = make_source(tmp_path / "a")
    list(plain.prepare())
    pool = plain.bank.rows(torch.arange(18)).float() / 255
    batch = plain.batch(18)
    assert sorted(map(str, batch.tolist())) == sorted(map(str, pool.tolist()))
    augmented = make_source(tmp_path / "b", augment_pool=True)
    list(augmented.prepare())
    moved = augmented.batch(18)
    assert moved.shape == batch.shape
    assert sorted(map(str, moved.tolist())) != sorted(map(str, pool.tolist()))


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_training_is_the_same(tmp_path: Path, stop: int) -> None:
    whole = make_source(tmp_path / "a")
    list(whole.prepare())
    first = make_source(tmp_path / "b")
    parts = first.prepare()
    for _ in range(stop):
        next(parts)
    state = first.state_dict()
    kept = copy.deepcopy(state)
    second = make_source(tmp_path / "b")
    second.load_state_dict(state)
    list(second.prepare())
    rows = torch.arange(18)
    assert torch.equal(whole.bank.rows(rows), second.bank.rows(rows))
    assert torch.equal(whole.batch(8), second.batch(8))
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, second.generator.state_dict()[name]), name
    # What was loaded is still what was saved: training did not write into it.
    for name, value in kept["generator"].items():
        assert torch.equal(value, state["generator"][name])
    assert torch.equal(kept["moments"][0]["exp_avg"], state["moments"][0]["exp_avg"])


def test_reseeding_changes_batches_not_the_pool(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    list(source.prepare())
    batches = []
    for seed in (1, 2, 1):
        source.reseed(seed)
        batches.append(source.batch(8))
    assert torch.equal(batches[0], batches[2]) and not torch.equal(batches[0], batches[1])
    assert len(source.bank) == 18


def test_the_students_loss_is_at_the_stated_temperature(tmp_path: Path) -> None:
    assert make_source(tmp_path).params.temperature == 1.0
    criterion = make_source(tmp_path, temperature=20.0).criterion()
    assert isinstance(criterion, SoftLabelCriterion) and criterion.temperature == 20.0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    source = make_source(tmp_path, entropy_weight=1e300)
    with pytest.raises(NumericError, match=r"methods\.dafl, generator step 1: .*learning_rate"):
        next(source.prepare())
    assert len(source.bank) == 0


@pytest.mark.parametrize(
    "changes", [{"batch_size": 1}, {"sample_every": 0}, {"skip_steps": 5}, {"generator": "big"}]
)
def test_misuse_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        make_source(tmp_path, **changes)
