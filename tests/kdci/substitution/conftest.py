"""A tiny source of every method over a tiny bank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdci.config.catalog import DatasetSpec
from kdci.data.bank.image_bank import ImageBank
from kdci.models import PixelModel
from kdci.substitution.bank_source import BankSource
from kdci.substitution.base import SourceContext
from kdci.substitution.registry import block_of
from tests.kdci._tensor_pool import TensorPool

SPEC = DatasetSpec("tiny", 3, 8, 1, (0.4,), (0.3,), 1, True, ("a", "b", "c"))
"""Augmented by crops and flips."""
TINY: dict[str, dict[str, Any]] = {
    "dafl": {"num_steps": 4, "sample_every": 2, "batch_size": 6, "generator_width": 4},
    "fast": {"num_steps": 2, "warmup_calls": 2, "batch_size": 6, "generator_width": 4},
    "cmi": {"num_steps": 2, "warmup_calls": 2, "batch_size": 6, "generator_width": 4},
    "deepinv": {"num_steps": 2, "warmup_calls": 2, "batch_size": 6},
    "mosaick": {
        "num_selected": 12,
        "num_samples": 8,
        "warmup_steps": 2,
        "batch_size": 6,
        "generator_width": 4,
        "discriminator_width": 4,
    },
    "dfnd": {"num_selected": 12},
    "noise": {"num_images": 12},
}
"""Params of each method."""


@pytest.fixture
def make_source() -> Callable[..., BankSource]:
    """Return a maker of the source of a method, or of `resampled`, with seed 11."""

    def make(
        method: str, folder: Path, teacher: PixelModel, *, spec: DatasetSpec = SPEC
    ) -> BankSource:
        folder.mkdir(exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        pool = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
        bank = ImageBank(folder / "bank.bin", shape=(1, 8, 8))
        context = SourceContext(teacher, spec, bank, 11, 0.9, lambda: TensorPool(pool))
        if method == "resampled":
            bank.append(pool[:12].float() / 255)
            return BankSource(context, SimpleNamespace(temperature=4.0))
        return block_of(method)(**TINY[method]).source(context)

    return make
