"""When a student that is being distilled is saved, and under which name. Torch-free."""

from __future__ import annotations


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
