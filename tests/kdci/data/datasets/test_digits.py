from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from kdci.config.catalog import DATASETS
from kdci.data.datasets.digits import load_digits as load_half
from kdci.errors import UserError

SPEC = DATASETS["digits"]


def naive_resize(image: np.ndarray) -> np.ndarray:
    """Bilinear 8 -> 16 with half-pixel centres: output i looks at (i + 0.5) / 2 - 0.5."""
    out = np.zeros((16, 16))
    for i in range(16):
        for j in range(16):
            y, x = min(max((i + 0.5) / 2 - 0.5, 0), 7), min(max((j + 0.5) / 2 - 0.5, 0), 7)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 7), min(x0 + 1, 7)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            low = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return np.round(out).astype(np.uint8)


def test_the_halves_partition_all_digits_and_are_stratified() -> None:
    train, test = load_half(SPEC, None, "train"), load_half(SPEC, None, "test")
    assert (len(train), len(test)) == (898, 899)
    assert train.images.shape == (898, 1, 16, 16)
    every = np.stack([naive_resize(image * 255 / 16) for image in load_digits().images])
    found = torch.cat([train.images[:], test.images[:]]).squeeze(1).numpy()
    pairs = sorted(zip(map(bytes, found), torch.cat([train.labels, test.labels]), strict=True))
    expected = sorted(zip(map(bytes, every), load_digits().target, strict=True))
    assert [(pixels, int(label)) for pixels, label in pairs] == [
        (pixels, int(label)) for pixels, label in expected
    ]
    difference = train.labels.bincount(minlength=10) - test.labels.bincount(minlength=10)
    assert difference.abs().max() <= 1


def test_the_split_is_the_one_scikit_learn_draws() -> None:
    bundled = load_digits()
    halves = train_test_split(
        np.arange(1797), test_size=0.5, random_state=0, stratify=bundled.target
    )
    for split, rows in zip(("train", "test"), halves, strict=True):
        found = load_half(SPEC, None, split)
        expected = np.stack([naive_resize(bundled.images[i] * 255 / 16) for i in np.sort(rows)])
        assert np.array_equal(found.images[:, 0].numpy(), expected)
        assert found.labels.tolist() == bundled.target[np.sort(rows)].tolist()


def test_a_path_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.path.*null"):
        load_half(SPEC, Path("mine"), "test")
