"""What a stage works on, of the graph as it is now or of an execution of long ago."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdci.graph.build import Graph


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
