"""What a student's distillation took: seconds of an epoch, memory, and on what. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdci.reporting.text.wording import hardware


@dataclass(frozen=True)
class Cost:
    """What a student's distillation took.

    Attributes:
        seconds_per_epoch: Of an epoch of the recipe, before a budget makes it shorter.
        memory_mb: The most that was held at once, in MB of 2^20 bytes; null where not known.
        on_gpu: Whether that is a GPU's memory, or else the process's.
        hardware: What it ran on.
    """

    seconds_per_epoch: float
    memory_mb: float | None
    on_gpu: bool
    hardware: str


def read_timing(file: Path) -> dict[str, Any]:
    """Return an artifact's wall times; empty without any, for no result hangs on a wall time."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def known_number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a file of wall times; null where it is missing or is none."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) else None


def cost_of(card: Mapping[str, Any], timing: Mapping[str, Any]) -> Cost | None:
    """Return what a student took; null where its times, or its recipe, are not known.

    Args:
        card: Of the student.
        timing: Content of its file of wall times.
    """
    seconds = known_number(timing, "loop_seconds")
    recipes = [value for key, value in card.get("params", {}).items() if key.startswith("recipes.")]
    if seconds is None or not recipes:
        return None
    seconds_per_step = seconds / card["facts"]["num_steps"]
    gpu = known_number(timing, "peak_gpu_memory_bytes")
    memory = known_number(timing, "peak_memory_bytes") if gpu is None else gpu
    return Cost(
        seconds_per_epoch=seconds_per_step * recipes[0]["steps_per_epoch"],
        memory_mb=None if memory is None else memory / 2**20,
        on_gpu=gpu is not None,
        hardware=hardware(card["runtime"]),
    )
