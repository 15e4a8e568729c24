"""Scores of a trained network: accuracy, agreement with the teacher, predicted marginals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kdci.data.datasets.labelled import ImageSet

PREDICTION_BATCH = 512
"""Images a forward pass where a stage's result holds predictions: fixed, for it can change bits."""

Logits = Callable[[Tensor], Tensor]
"""From images, float32 in [0, 1], (B, C, H, W), to logits (B, K)."""


def image_batches(
    images: ImageSet, *, batch_size: int, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Yield uint8 images (M, C, H, W) as float32 batches in [0, 1], in order.

    Images that lie in files are decoded a batch at a time.
    """
    for start in range(0, max(len(images), 1), batch_size):
        yield images[start : start + batch_size].to(device).float() / 255


@torch.no_grad()
def predict_logits(
    logits_of: Logits, images: ImageSet, *, batch_size: int, device: torch.device | None = None
) -> Tensor:
    """Return the logits of each uint8 image; (M, K), on the CPU.

    They go into one tensor made beforehand. As small tensors of their own they would lie in the
    gaps that batches leave in memory, and each next batch would need a new one.
    """
    logits_MK = torch.empty(0)
    start = 0
    for batch in image_batches(images, batch_size=batch_size, device=device):
        logits_BK = logits_of(batch).cpu()
        if start == 0:
            logits_MK = torch.empty(len(images), logits_BK.shape[1], dtype=logits_BK.dtype)
        logits_MK[start : start + len(logits_BK)] = logits_BK
        start += len(logits_BK)
    return logits_MK


def predict_classes(
    logits_of: Logits, images: ImageSet, *, batch_size: int, device: torch.device | None = None
) -> Tensor:
    """Return the predicted class of each uint8 image; (M,), on the CPU."""
    logits_MK = predict_logits(logits_of, images, batch_size=batch_size, device=device)
    return logits_MK.argmax(dim=1)


def match_percentage(predicted_M: Tensor, expected_M: Tensor) -> float:
    """Return how many of the predictions equal the expected classes, in percent.

    With labels that is accuracy; with the teacher's classes it is agreement.
    """
    return 100 * float((predicted_M == expected_M).double().mean())


def class_proportions(classes_M: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class; (K,), summing to 1."""
    counts_K = torch.bincount(classes_M, minlength=num_classes).double()
    return counts_K / counts_K.sum()
