"""scikit-learn's bundled handwritten digits, the default dataset that needs no download.

1,797 images of 8x8 pixels with values 0 to 16 (Alpaydin and Kaynak, UCI 1998), shown at
16x16 so that backbones with two poolings keep more than one pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from kdci.config.catalog import DatasetSpec
from kdci.data.datasets.labelled import LabelledImages, Split
from kdci.data.files.bundled import bundled_file
from kdci.errors import UserError

_TEST_ROWS = (
    "ea3844cab5e678d199566f21d7724d1efa280e132ab440ef272c5e083119979f01d03932a635fea39ac39ef44a"
    "284fdfbc46172ec962cfe2ca31f0ba601ed8a579eba13049588dc58792421ff09011554aec41f11e2176eecc09"
    "85fa37968cc3bf873ea7a6de7e4324122fdbd4e805a6b9fd1312f271e540f12c706e9c37efa7d21f4d5ec84048"
    "62a9a49caa7449f65f9563ee8bd3abdf92ed8ac5a225269f6223cdf202c1f1fd8edbc849f9954d96ce210a8cd8"
    "a8f57237ae3921c94dccc86ecb6136d32ab29309f6ae702da6c7a5c8ef7481d8e8a4b45287b65a32d53cbc1d60"
)
"""A bit for each image, whether it is in the test half: drawn once, stratified by class."""


def load_digits(spec: DatasetSpec, path: Path | None, split: Split) -> LabelledImages:
    """Return one half of the digits, stratified by class; always the same half.

    Args:
        spec: Of all digits, or of those from 0 on that it has as classes.
        path: Must be ``None``: one that is ignored would let a user believe in their own data.
        split: ``train`` (898 images of all ten) or ``test`` (899 images).

    Returns:
        (N, 1, 16, 16) uint8 images with their labels.

    Raises:
        UserError: If a path is given.
    """
    if path is not None:
        raise UserError("data.path", f"digits are bundled, got {path}", "set it to null")
    # 64 pixels, row by row, and the label.
    table = np.loadtxt(bundled_file("datasets/data/digits.csv.gz"), delimiter=",")
    in_test = np.unpackbits(np.frombuffer(bytes.fromhex(_TEST_ROWS), np.uint8))[: len(table)]
    chosen = (in_test == (split == "test")) & (table[:, 64] < spec.num_classes)
    rows = torch.from_numpy(np.flatnonzero(chosen))
    # 255/16 and the bilinear weights are dyadic, so the rounding is the same on any machine.
    scaled = torch.from_numpy(table[:, :64]).reshape(-1, 1, 8, 8) * (255 / 16)
    size = spec.image_size
    images = F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(table[:, 64]).to(torch.int64)
    return LabelledImages(images[rows].round().to(torch.uint8), labels[rows])
