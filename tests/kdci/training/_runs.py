"""Small distillations of three epochs, with every part in sight, and what came of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.deconfounding.compensation import Compensation
from kdci.methods.dfnd import Dfnd, DfndSource
from kdci.methods.fast import Fast, FastSource
from kdci.models import PixelModel
from kdci.substitution.base import SoftLabelCriterion, SourceContext, StudentCriterion
from kdci.training.distillation import Distiller
from tests.kdci._tensor_pool import TensorPool

SPEC = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))
NUM_EPOCHS, STEPS_PER_EPOCH, BATCH_SIZE = 3, 3, 8
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
TEACHER_SEED, STUDENT_SEED = 1, 2

MakeModel = Callable[[int], PixelModel]
Flatten = Callable[[Any], dict[str, object]]


class Sink:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, **values: float) -> None:
        self.rows.append((step, values))


class StubSource:
    """Fixed random batches; notes every refresh."""

    refresh_period: int | None = None

    def __init__(self, criterion: StudentCriterion | None = None) -> None:
        self.bank: Any = range(77)
        self._criterion = criterion or SoftLabelCriterion(4.0)
        self.random = torch.Generator().manual_seed(0)
        self.batches: list[Tensor] = []
        self.refreshed_with: list[tuple[int, PixelModel]] = []

    def refresh(self, student: PixelModel) -> dict[str, float]:
        self.refreshed_with.append((len(self.batches), student))
        return {"inversion_loss": float(len(self.refreshed_with))}

    def batch(self, size: int) -> Tensor:
        self.batches.append(torch.rand(size, 1, 8, 8, generator=self.random))
        return self.batches[-1]

    def criterion(self) -> StudentCriterion:
        return self._criterion

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"])


@dataclass
class Run:
    """A distiller made of fresh objects, with a record of what happened."""

    distiller: Distiller
    batches: list[Tensor] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        source: Any = self.distiller.source
        draw = source.batch

        def batch(size: int) -> Tensor:
            self.batches.append(draw(size))
            return self.batches[-1]

        source.batch = batch

    @property
    def rows(self) -> list[tuple[int, dict[str, float]]]:
        sink: Any = self.distiller.sink
        rows: list[tuple[int, dict[str, float]]] = sink.rows
        return rows

    def advance(self, num_steps: int = NUM_STEPS) -> Run:
        steps = self.distiller.run()
        for _ in range(num_steps):
            next(steps)
            self.rates.append([group["lr"] for group in self.distiller.optimizer.param_groups])
        if self.distiller.step == NUM_STEPS:
            assert next(steps, None) is None
        return self


def make_source(kind: str, folder: Path, teacher: PixelModel, *, prepare: bool) -> Any:
    """Return a source over the bank that lies in the folder."""
    if kind == "stub":
        return StubSource()
    generator = torch.Generator().manual_seed(3)
    pool = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    bank = ImageBank(folder / "bank.bin", shape=(1, 8, 8))
    context = SourceContext(teacher, SPEC, bank, 5, 0.9, lambda: TensorPool(pool))
    source: Any
    if kind == "dfnd":
        source = DfndSource(context, Dfnd(num_selected=30, noise_learning_rate=0.05))
    else:
        options: dict[str, Any] = {
            "latent_dim": 5,
            "generator_width": 3,
            "batch_size": 6,
            "num_steps": 2,
        }
        source = FastSource(context, Fast(warmup_calls=2, reset_after_calls=1, **options))
    if prepare:
        list(source.prepare())
    return source


def make_compensation(variant: str) -> Compensation | None:
    if variant == "vanilla":
        return None
    prototypes = torch.randn(4, 3, generator=torch.Generator().manual_seed(8))
    proportions = torch.tensor([0.4, 0.3, 0.2, 0.1])
    weights: Any = "random" if variant == "random lambda" else "learned"
    return Compensation(
        prototypes, proportions, num_classes=3, scale="N", weights=weights, fusion="residual"
    )


def make_run(
    make_model: MakeModel,
    folder: Path,
    source: Any = "stub",
    variant: str = "vanilla",
    *,
    prepare: bool = True,
    **changes: Any,
) -> Run:
    folder.mkdir(exist_ok=True)
    teacher = make_model(TEACHER_SEED).eval().requires_grad_(False)
    if isinstance(source, str):
        source = make_source(source, folder, teacher, prepare=prepare)
    options: dict[str, Any] = {
        "teacher": teacher,
        "student": make_model(STUDENT_SEED),
        "source": source,
        "compensation": make_compensation(variant),
        "sink": Sink(),
        "num_epochs": NUM_EPOCHS,
        "steps_per_epoch": STEPS_PER_EPOCH,
        "batch_size": BATCH_SIZE,
        "learning_rate": 0.1,
    }
    return Run(Distiller(**{**options, **changes}))


def outcome(run: Run, flatten: Flatten) -> dict[str, object]:
    """Spell everything a run leaves behind: weights, moments, streams, bank, metrics."""
    bank = run.distiller.source.bank
    images = bank.rows(torch.arange(len(bank))) if isinstance(bank, ImageBank) else None
    return flatten({"state": run.distiller.state_dict(), "bank": images, "metrics": run.rows})


def equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
