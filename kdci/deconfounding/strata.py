"""The strata z of an intervention by sampling: the teacher's classes, or the prototypes.

Backdoor adjustment sums over the strata with a P(z) of our choosing: drawing batches evenly over
them sets P(z) even. ``kdci.methods`` draws by them and knows nothing of how they are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kdci.data.bank.stratified_rows import stratum_shares
from kdci.deconfounding.confounder import Space, in_space
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
        # By matrix products, as for more than 25 rows, far-off predictions lose their digits.
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(predictions_BD, prototypes_ND, compute_mode=exact).argmin(dim=1)

    return stratum_of


def drawn_proportions(
    assignments_M: Tensor, strata_M: Tensor, *, max_repeats: float = math.inf
) -> Tensor:
    """Return P(z_i) of what is drawn from a pool by strata, instead of what lies in it.

    Args:
        assignments_M: Prototype of each image of the pool; (M,).
        strata_M: Stratum of each; (M,).
        max_repeats: Cap of the draw; see ``kdci.data.bank.stratified_rows.stratum_shares``.

    Returns:
        (N,), positive, summing to 1.
    """
    sizes_S = torch.bincount(strata_M)
    weights_S = stratum_shares(sizes_S, max_repeats=max_repeats) / sizes_S.clamp(min=1)
    drawn_N = torch.bincount(assignments_M, weights=weights_S[strata_M])
    return (drawn_N / drawn_N.sum()).float()
