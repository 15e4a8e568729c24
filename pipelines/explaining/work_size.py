"""How many steps a stage's params ask for: what its time goes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from kdci.config.recipes import scaled_calls, scaled_count, scaled_epochs
from kdci.substitution.registry import block_of, names
from pipelines.explaining.tasks import Task


def num_steps(task: Task, params: Mapping[str, Any]) -> int | None:
    """Return the number of steps of a stage's loop.

    Args:
        task: What it works on.
        params: The params blocks it depends on, by dotted key.

    Returns:
        Steps, in a unit of the stage's own; None: the time goes with no such number, or
        params.yaml leaves a part of it to its default.
    """
    budget = params.get("budget", 1.0)
    if task.stage == "teacher":
        return _product(params.get("teacher"), ("num_epochs",))
    if task.stage == "distill":
        recipes = [block for key, block in params.items() if key.startswith("recipes.")]
        keys = ("num_epochs", "steps_per_epoch")
        return _product(recipes[0] if recipes else None, keys, budget, scaled=scaled_epochs)
    if task.stage == "substitute":
        block = params.get(f"methods.{task.method}")
        factors = block_of(task.method).pool_steps if task.method in names() else ()
        return _product(block, factors, budget)
    return None


def _product(
    block: Any,
    keys: tuple[str, ...],
    budget: object = 1.0,
    *,
    scaled: Callable[[int, int, float], tuple[int, int]] = scaled_calls,
) -> int | None:
    """Return the product of a block's values, scaled as ``Params.budget`` says."""
    if not keys or not isinstance(block, Mapping) or not isinstance(budget, int | float):
        return None
    factors = [block.get(key) for key in keys]
    if not all(isinstance(factor, int) for factor in factors):
        return None
    if any(key in values for values in (block.get("by_teacher") or {}).values() for key in keys):
        return None  # it depends on the teacher, which is not asked for here
    *calls, steps = [factor for factor in factors if isinstance(factor, int)]
    if not calls:
        return scaled_count(steps, float(budget))
    return prod(scaled(prod(calls), steps, float(budget)))
