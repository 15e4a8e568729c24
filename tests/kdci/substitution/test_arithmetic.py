"""How the teacher computes changes a method's numbers by rounding alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel, build_backbone
from kdci.models.generators.generating import BesideTeacher
from kdci.store.checkpoints import load_state, save_state
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.registry import block_of
from kdci.synthesis.inversion import BatchNormStatistics
from tests.kdci._tensor_pool import TensorPool

# Three channels: images of one are the same bytes in both memory formats.
SPEC = DatasetSpec("tiny", 3, 8, 3, (0.4,) * 3, (0.3,) * 3, 1, True, ("a", "b", "c"))
SMALL: dict[str, dict[str, Any]] = {
    "dafl": {"num_steps": 4, "sample_every": 2, "generator_width": 4},
    "fast": {"num_steps": 3, "warmup_calls": 2, "generator_width": 4},
    "cmi": {"num_steps": 3, "warmup_calls": 2, "generator_width": 4},
    "deepinv": {"num_steps": 3, "warmup_calls": 2},
    "mosaick": {
        "num_selected": 12,
        "num_samples": 8,
        "warmup_steps": 2,
        "generator_width": 4,
        "discriminator_width": 4,
    },
}
"""The methods that make images."""


def make_model(
    seed: int, *, channels_last: bool = False, autocast_dtype: torch.dtype | None = None
) -> PixelModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone("wrn-10-1", num_classes=3, channels=3)
        model = PixelModel(backbone, mean=SPEC.mean, std=SPEC.std)
        with torch.no_grad():
            for _ in range(30):  # running statistics
                model(torch.rand(64, 3, 8, 8))
    if channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.autocast_dtype = autocast_dtype
    return model.eval()


def make_source(method: str, folder: Path, teacher: PixelModel, **changes: Any) -> Any:
    folder.mkdir(exist_ok=True)
    pool = torch.randint(
        0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    bank = ImageBank(folder / "bank.bin", shape=(3, 8, 8))
    context = SourceContext(teacher, SPEC, bank, 11, 0.9, lambda: TensorPool(pool))
    return block_of(method)(**{"batch_size": 6, **SMALL[method], **changes}).source(context)


def run(source: BankSource, student: PixelModel) -> list[dict[str, float]]:
    reports = [*source.prepare(), source.refresh(student), source.refresh(student)]
    return [report for report in reports if set(report) - {"scored", "entropy", "bank"}]


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_channels_last_changes_readings_by_rounding(method: str, tmp_path: Path) -> None:
    reports = [
        run(
            make_source(method, tmp_path / str(flag), make_model(0, channels_last=flag)),
            make_model(1, channels_last=flag),
        )
        for flag in (False, True)
    ]
    assert len(reports[0]) >= 2
    for one, other in zip(*reports, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_bf16_stays_near_float32(method: str, tmp_path: Path) -> None:
    """Emulated where the processor has none: slow there, and the same numbers."""
    settings: list[dict[str, Any]] = [{}, {"channels_last": True, "autocast_dtype": torch.bfloat16}]
    sources = [
        make_source(method, tmp_path / str(number), make_model(0, **setting))
        for number, setting in enumerate(settings)
    ]
    networks = [one for one in vars(sources[1]).values() if isinstance(one, BesideTeacher)]
    assert all(one.arithmetic.autocast_dtype == torch.bfloat16 for one in networks)
    reports = [
        run(source, make_model(1, **setting))
        for source, setting in zip(sources, settings, strict=True)
    ]
    assert reports[1] != reports[0]
    # The first part's readings: later ones differ by what the rounding of earlier steps led to.
    assert reports[1][0] == pytest.approx(reports[0][0], rel=0.1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", SMALL)
def test_beside_a_channels_last_teacher_a_checkpoint_is_gone_on_from_bit_by_bit(
    method: str, tmp_path: Path
) -> None:
    """Files hold no memory format: weights and moments come back as they were all the same."""
    teacher, student = make_model(0, channels_last=True), make_model(1, channels_last=True)
    source = make_source(method, tmp_path / "a", teacher)
    run(source, student)
    save_state(tmp_path / "state", source.state_dict())
    other = make_source(method, tmp_path / "b", teacher)
    other.bank.append(source.bank.rows(torch.arange(len(source.bank))).float() / 255)
    other.load_state_dict(load_state(tmp_path / "state"))
    assert run(source, student) == run(other, student)
    assert torch.equal(source.batch(6), other.batch(6))


def count_calls(model: PixelModel) -> list[int]:
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def count_hooks(model: PixelModel) -> Callable[[], int]:
    """Return the most hooks that the model's layers had at one of its calls."""
    found: list[int] = []
    model.register_forward_pre_hook(
        lambda module, _: found.append(
            sum(len(layer._forward_pre_hooks) for layer in module.backbone.modules())
        )
    )
    return lambda: max(found)


@pytest.mark.parametrize("method", ["fast", "cmi", "deepinv"])
def test_without_its_weight_no_batch_statistics_are_read(method: str, tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 1.0):
        teacher = make_model(0)
        source = make_source(method, tmp_path / str(weight), teacher, bn_weight=weight)
        num_hooks = count_hooks(teacher)
        reading = next(source.prepare())
        found[weight] = num_hooks()
        assert (reading["bn"] == 0) is (weight == 0)
    # CMI reads features of the same layers besides.
    num_norms, others = len(BatchNormStatistics(teacher)), int(method == "cmi")
    assert found == {0.0: others * num_norms, 1.0: (others + 1) * num_norms}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fast", "cmi", "deepinv", "mosaick"])
def test_without_its_weight_the_student_is_not_run(method: str, tmp_path: Path) -> None:
    for weight in (0.0, 1.0):
        student = make_model(1)
        calls = count_calls(student)
        source = make_source(
            method, tmp_path / str(weight), make_model(0), adversarial_weight=weight
        )
        reports = run(source, student)
        assert bool(calls) is (weight > 0)
        assert (reports[-1]["adversarial"] == 0) is (weight == 0)
