"""Whether a written student answers as the one it was written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor

from kdci.errors import IntegrityError
from kdci.exporting.formats import Model

TOLERANCE = 1e-4
"""Largest difference of a logit, for logits of up to 1 in size; for larger ones, of them."""
BATCHES = (1, 7)
_SEED = 0


def parity_inputs(shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Return images (N, C, H, W) by name: uniform in [0, 1], all black, all white; N = 1 and 7."""
    random = torch.Generator().manual_seed(_SEED)
    found = {}
    for size in BATCHES:
        full = (size, *shape)
        found[f"uniform, batch {size}"] = torch.rand(full, generator=random)
        found[f"all 0, batch {size}"] = torch.zeros(full)
        found[f"all 1, batch {size}"] = torch.ones(full)
    return found


@dataclass(frozen=True)
class Difference:
    """How far two models are apart on some images.

    Attributes:
        absolute: Largest difference of a logit.
        largest: Largest logit of the expected model, in size.
    """

    absolute: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference as a share of the largest logit, or of 1 if that is smaller.

        float32 keeps seven digits: of logits of 10,000, a thousandth is rounding.
        """
        return self.absolute / max(1.0, self.largest)


@torch.no_grad()
def differences(
    model: Model, expected: Model, inputs: Mapping[str, Tensor]
) -> dict[str, Difference]:
    """Return how far the logits of two models are apart, by input.

    Raises:
        ValueError: The two give logits of different shapes.
    """
    found = {}
    for name, images in inputs.items():
        logits, wanted = model(images), expected(images)
        if logits.shape != wanted.shape:
            raise ValueError(f"logits of {tuple(logits.shape)} in the place of {wanted.shape}")
        apart = float((logits - wanted).abs().max())
        found[name] = Difference(apart, float(wanted.abs().max()))
    return found


def require_parity(found: Mapping[str, Difference], *, subject: str) -> dict[str, Any]:
    """Check differences against the tolerance, and return what is recorded of them.

    Raises:
        IntegrityError: One is above it, or not a number.
    """
    apart = {name: each.relative for name, each in found.items()}
    worst = max(apart, key=lambda name: (isnan(apart[name]), apart[name]))
    if not apart[worst] <= TOLERANCE:
        bound = TOLERANCE * max(1.0, found[worst].largest)
        what = f"differs from the student by {found[worst].absolute:.3g} ({worst}), above {bound:g}"
        raise IntegrityError(subject, what, "nothing was written; leave this format out")
    return {
        "max_abs_difference": max(each.absolute for each in found.values()),
        "max_relative_difference": apart[worst],
        "by_input": {name: each.absolute for name, each in found.items()},
    }
