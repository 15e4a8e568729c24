"""scikit-learn's bundled handwritten digits, the default dataset that needs no download.

1,797 images of 8x8 pixels with values 0 to 16 (Alpaydin and Kaynak, UCI 1998), shown at
16x16 so that backbones with two poolings keep more than one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from kdci.catalog import DATASETS
from kdci.data.labelled import LabelledImages, Split
from kdci.errors import UserError

SPLIT_SEED = 0


def load_digits_split(path: Path | None, split: Split) -> LabelledImages:
    """Return one half of the digits, stratified by class; always the same half.

    Args:
        path: Must be ``None``.
        split: ``train`` (898 images) or ``test`` (899 images).

    Returns:
        (N, 1, 16, 16) uint8 images with their labels.

    Raises:
        UserError: If a path is given.
    """
    check_digits(path, [split])
    bundled = load_digits()
    train, test = train_test_split(
        np.arange(len(bundled.target)),
        test_size=0.5,
        random_state=SPLIT_SEED,
        stratify=bundled.target,
    )
    rows = torch.from_numpy(np.sort(train if split == "train" else test))
    # 255/16 and the bilinear weights are dyadic, so the rounding is the same on any machine.
    scaled = torch.from_numpy(bundled.images).unsqueeze(1) * (255 / 16)
    size = DATASETS["digits"].image_size
    images = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(bundled.target).to(torch.int64)
    return LabelledImages(images[rows].round().to(torch.uint8), labels[rows])


def load_digits5_split(path: Path | None, split: Split) -> LabelledImages:
    """Return the digits 0 to 4 of a half of ``load_digits_split``; about 450 images."""
    whole = load_digits_split(path, split)
    kept = whole.labels < DATASETS["digits5"].num_classes
    return LabelledImages(whole.images[kept], whole.labels[kept])


def check_digits(path: Path | None, splits: Sequence[Split]) -> None:
    """Refuse a path: one that is ignored would let a user believe in their own data.

    Raises:
        UserError: If a path is given.
    """
    if path is not None:
        raise UserError("data.path", f"digits are bundled, got {path}", "set it to null")
