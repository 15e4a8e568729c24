"""Learning rates and snapshots as functions of the step: resuming needs no state. Torch-free."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
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


def snapshot_steps(num_epochs: int, steps_per_epoch: int, num_snapshots: int) -> list[int]:
    """Return the steps after which a snapshot is taken, evenly spread, the last one in.

    Ends of epochs where there are enough of them; a recipe of a few long epochs has snapshots
    within them.
    """
    unit, num_units = steps_per_epoch, num_epochs
    if num_units < num_snapshots:
        unit, num_units = 1, num_epochs * steps_per_epoch
    count = min(num_snapshots, num_units)
    marks = sorted({round(num_units * (i + 1) / count) for i in range(count)})
    return [unit * mark for mark in marks]


def snapshot_name(step: int) -> str:
    """Return the file of the snapshot after a step."""
    return f"snapshot-{step:09d}.safetensors"
