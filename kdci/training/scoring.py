"""Scores of a distilled student on a set of images, with phi and without."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdci.data.datasets.labelled import ImageSet
from kdci.deconfounding.shift import expected_calibration_error, marginal_bias
from kdci.models import PixelModel
from kdci.models.students import Student
from kdci.training.arithmetic import ComputeFormat
from kdci.training.evaluation import match_percentage, predict_classes, predict_logits

Measures = dict[str, float | None]
PARTS = ("backbone", "compensated")


@dataclass(frozen=True)
class ScoredSet:
    """Images students are scored on: test images with labels, or held-out substitutes.

    Attributes:
        images: uint8 (M, C, H, W).
        expected: Labels, or the teacher's classes; (M,).
        teacher: The teacher's classes; (M,).
    """

    images: ImageSet
    expected: Tensor
    teacher: Tensor

    @classmethod
    def of_teacher(
        cls, teacher: PixelModel, images: ImageSet, labels: Tensor | None = None, *, batch_size: int
    ) -> ScoredSet:
        """Return images with the teacher's classes, which are expected where there are no labels.

        Args:
            teacher: Frozen.
            images: uint8 (M, C, H, W).
            labels: (M,), or None.
            batch_size: Images a forward pass.
        """
        classes = predict_classes(
            lambda batch: teacher(batch).logits,
            images,
            batch_size=batch_size,
            device=next(teacher.parameters()).device,
        )
        return cls(images, expected=classes if labels is None else labels, teacher=classes)


@dataclass(frozen=True)
class Scores:
    """Logits of one student, (M, K): of the backbone, and compensated (None: no phi).

    Attributes:
        weights: Mean lambda_i over the images, (N,); None: no phi.
    """

    backbone: Tensor
    compensated: Tensor | None
    weights: Tensor | None

    def logits(self, part: str) -> Tensor | None:
        """Return one of the two."""
        return self.backbone if part == "backbone" else self.compensated

    def classes(self, part: str) -> Tensor | None:
        """Return the predicted classes of one of the two, (M,)."""
        logits = self.logits(part)
        return None if logits is None else logits.argmax(dim=1)


@torch.no_grad()
def score(
    student: Student,
    images: ImageSet,
    *,
    chosen: ComputeFormat,
    device: torch.device,
    batch_size: int,
) -> Scores:
    """Predict with f_S and with phi(f_S, F(z)), in one pass over the images.

    Args:
        student: Is moved to the device, and put into the format.
        images: uint8 (M, C, H, W).
        chosen: What it computes in.
        device: Where it computes.
        batch_size: Images a forward pass.
    """
    student = student.to(device)
    student.backbone.autocast_dtype = chosen.autocast_dtype
    student.backbone.to(memory_format=chosen.layout)
    student.deploy = "backbone"
    logits = predict_logits(student, images, batch_size=batch_size, device=device)
    if student.compensation is None:
        return Scores(logits, None, None)
    module, raw = student.compensation, logits.to(device)
    # Random lambda (Table 4) means nothing by prototype: its mean is even by construction.
    weights = module.attention(raw).mean(dim=0).cpu() if module.weights == "learned" else None
    return Scores(logits, student.compensated(raw).cpu(), weights)


def percentages(scores: Scores | None, on: ScoredSet | None, name: str) -> Measures:
    """Return how often each part's class is the expected one, in percent, as `<name>_<part>`."""

    def measure(part: str) -> float | None:
        classes = scores.classes(part) if scores is not None else None
        return None if classes is None or on is None else match_percentage(classes, on.expected)

    return {f"{name}_{part}": measure(part) for part in PARTS}


def shift_measures(scores: Scores | None, on: ScoredSet | None, num_classes: int) -> Measures:
    """Return what a shifted pool leaves in a student: calibration error and marginal bias."""
    found: Measures = {}
    for part in PARTS:
        logits = scores.logits(part) if scores is not None else None
        error = bias = None
        if logits is not None and on is not None:
            error = expected_calibration_error(logits, on.expected)
            bias = marginal_bias(logits.argmax(dim=1), on.expected, num_classes)
        found |= {f"calibration_error_{part}": error, f"marginal_bias_{part}": bias}
    return found
