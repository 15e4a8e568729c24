"""The strata z of an intervention by sampling: the teacher's classes, or the prototypes.

Backdoor adjustment sums over the strata with a P(z) of our choosing: drawing batches evenly over
them sets P(z) even. ``kdci.substitution`` draws by them and knows nothing of how they are made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdci.confounder import Space, in_space
from kdci.models import PixelModel


def class_strata(teacher: PixelModel) -> Callable[[Tensor], Tensor]:
    """Return a function from images (B, C, H, W) to the teacher's class of each, (B,)."""

    @torch.no_grad()
    def stratum_of(images_BCHW: Tensor) -> Tensor:
        classes_B: Tensor = teacher(images_BCHW).logits.argmax(dim=1).cpu()
        return classes_B

    return stratum_of


def prototype_strata(
    teacher: PixelModel, prototypes_ND: Tensor, *, space: Space
) -> Callable[[Tensor], Tensor]:
    """Return a function from images to the prototype nearest to the teacher's prediction.

    Args:
        teacher: The dictionary's own, in eval mode.
        prototypes_ND: z_i; (N, D).
        space: The space of the prototypes.
    """

    @torch.no_grad()
    def stratum_of(images_BCHW: Tensor) -> Tensor:
        predictions_BD = in_space(teacher(images_BCHW), space).cpu().float()
        return torch.cdist(predictions_BD, prototypes_ND).argmin(dim=1)

    return stratum_of
