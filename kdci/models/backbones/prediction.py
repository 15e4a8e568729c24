"""What every backbone returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """A classifier's answer to a batch of images.

    Attributes:
        logits: Unnormalised class scores, shape (B, K).
        features: Penultimate features, the input of the last linear layer, shape (B, D).
    """

    logits: Tensor
    features: Tensor
