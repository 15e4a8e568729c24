"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import Literal

from torch.optim import Optimizer

Schedule = Literal["cosine", "milestones", "constant"]


def learning_rate_factor(
    schedule: Schedule, *, step: int, num_steps: int, final_factor: float = 0.0
) -> float:
    """Return the factor on the initial learning rate at ``step``.

    Args:
        schedule: `cosine` from 1 to ``final_factor``; `milestones` divides by 10 at 40 % and
            at 80 % of the steps (DFND, CVPR 2021); `constant`.
        step: Steps taken so far, 0 for the first.
        num_steps: Steps in all.
        final_factor: End of the cosine, as a share of the initial rate.
    """
    progress = step / num_steps
    if schedule == "cosine":
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "milestones":
        return 0.1 ** ((progress >= 0.4) + (progress >= 0.8))
    return 1.0


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set each group's rate to ``factor`` times the one it was created with."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor
