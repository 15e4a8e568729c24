from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kdci.config.catalog import DATASETS
from kdci.reporting.evidence import CurvePoint, DictionaryView, Evidence, Examples, PoolView
from kdci.reporting.results import Row
from kdci.store.layout import Cell

K = 10


def _row(variant: str = "vanilla", seed: int = 0, **values: Any) -> Row:
    known = {
        "preset": "digits",
        "dataset": "digits",
        "teacher": "wrn-16-1",
        "student": "wrn-10-1",
        "method": "fast",
        "variant": variant,
        "pool_seed": 0,
        "seed": seed,
        "accuracy": 90.0,
        "accuracy_backbone": 90.0,
        "accuracy_compensated": None if variant == "vanilla" else 91.0,
        "teacher_accuracy": 98.5,
        "agreement_backbone": 80.0,
        "agreement_compensated": None if variant == "vanilla" else 82.0,
        "num_steps": 400,
        "seconds": 10.0,
        "deploy": "backbone",
    }
    return Row(**{**known, **values})


@pytest.fixture
def row() -> Callable[..., Row]:
    return _row


@pytest.fixture
def pool() -> PoolView:
    """Classes 0 and 1 only, three images to one."""
    random = np.random.default_rng(0)
    top_class = np.array([0] * 30 + [1] * 10)
    proportions = [0.75, 0.25] + [0.0] * (K - 2)
    return PoolView(
        teacher="wrn-16-1",
        method="fast",
        pool_seed=0,
        images=random.integers(0, 256, (40, 1, 16, 16), dtype=np.uint8),
        top_class=top_class,
        confidence=random.uniform(0.3, 1, 40),
        facts={
            "num_images": 40,
            "num_open_world": 0,
            "proportions": proportions,
            "confidence": 0.6543,
            "missing_classes": list(range(2, K)),
        },
    )


@pytest.fixture
def evidence(pool: PoolView) -> Evidence:
    wanted = [
        Cell("wrn-16-1", "wrn-10-1", method, variant, 0, seed)
        for method in ("fast", "dfnd")
        for variant in ("vanilla", "kdci")
        for seed in (0, 1)
    ]
    rows = [
        _row("vanilla", 0, accuracy_backbone=90.0),
        _row("vanilla", 1, accuracy_backbone=92.0),
        _row("kdci", 0, accuracy_backbone=91.0),
        _row("kdci", 1, accuracy_backbone=95.0),
    ]
    points = [
        CurvePoint(step, 50.0 + step, 40.0, "fast", variant, "wrn-16-1", "wrn-10-1", replicate)
        for step in (10, 20)
        for variant in ("vanilla", "kdci backbone", "kdci compensated")
        for replicate in ("pool0-seed0", "pool0-seed1")
    ]
    random = np.random.default_rng(1)
    dictionary = DictionaryView(
        teacher="wrn-16-1",
        method="fast",
        pool_seed=0,
        prototypes=random.normal(size=(3, K)).astype(np.float32),
        proportions=np.array([0.5, 0.2, 0.3], dtype=np.float32),
        facts={
            "space": "logits",
            "requested": 4,
            "top_class": [1, 0, 0],
            "num_predictions": 40,
            "num_classes": K,
            "teacher": "wrn-16-1",
        },
    )
    examples = Examples(
        teacher="wrn-16-1",
        student="wrn-10-1",
        method="fast",
        images=random.integers(0, 256, (3, 1, 16, 16), dtype=np.uint8),
        predictions=[{"label": 1, "teacher": 1, "vanilla": 2, "kdci": 1, "group": "gained"}] * 3,
        evaluated_on="test",
    )
    card = {
        "facts": {"num_steps": 400, "batch_size": 64},
        "runtime": {"device": "cpu", "threads": 2, "precision": "fp32", "machine": "x86_64"},
        "code": {"revision": "abc123", "hash": "0"},
    }
    return Evidence(
        preset="digits",
        spec=DATASETS["digits"],
        wanted=wanted,
        rows=rows,
        teachers={"wrn-16-1": {"accuracy": 98.5}},
        pools=[pool],
        dictionaries=[dictionary],
        students={cell: card for cell in wanted[:4]},
        points=points,
        examples=[examples],
        evaluation_cards=[],
    )
