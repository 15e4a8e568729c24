"""What a stage works on, of the graph as it is now or of an execution of long ago; how many steps.

Its time goes with the steps that its params ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from kdci.config.recipes import scaled_calls, scaled_count, scaled_epochs
from kdci.graph.build import Graph
from kdci.substitution.registry import block_of, names


@dataclass(frozen=True)
class Task:
    """One stage at one point of a grid, which need not have it any more.

    Attributes:
        stage: Which stage: `teacher`, `distill`, ...
        point: Its axes as text, as ``Node.fields`` has them.
    """

    stage: str
    point: Mapping[str, str]

    @classmethod
    def read(cls, stage: Any, point: Any) -> Task | None:
        """Return the task that a record names; None: it names none, as older ones."""
        if not stage or not isinstance(point, Mapping):
            return None
        return cls(str(stage), {str(axis): str(value) for axis, value in point.items()})

    @property
    def method(self) -> str:
        """The method of its pool; "" for a teacher and the report."""
        return self.point.get("method", "")

    def is_like(self, other: Task, *axes: str) -> bool:
        """Tell whether another one is of the same stage and model, and equal in ``axes``."""
        same_model = ("other" in self.point) == ("other" in other.point)
        return (
            self.stage == other.stage
            and same_model
            and all(self.point.get(axis) == other.point.get(axis) for axis in axes)
        )


def tasks_of(graph: Graph) -> dict[str, Task]:
    """Return the tasks of a graph, by their stages' names in DVC."""
    return {name: Task(node.stage, node.fields) for name, node in graph.nodes.items()}


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
