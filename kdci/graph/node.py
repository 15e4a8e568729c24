"""One stage at one point of the grid: what it is made from, where it goes, what decides it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdci.deconfounding.arms import ARMS, Arm
from kdci.errors import UserError
from kdci.graph.code import Code
from kdci.store.layout import Cell

CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a shell and every file system take as it stands: a cell's name is part of a command."""

KINDS = {
    "teacher": "teacher",
    "substitute": "pool",
    "shift": "pool",
    "dictionary": "dictionary",
    "distill": "student",
    "evaluate": "evaluation",
    "report": "report",
}
"""The stages in the order in which they run, and the kind of artifact that each makes."""


def require_cell_name(name: str) -> str:
    """Return a cell's name if it is letters, digits, `.`, `_` and `-`, and begins with no sign.

    Raises:
        UserError: It is another text.
    """
    if CELL_NAME.fullmatch(name) is None:
        what = "is no cell's name: letters, digits, `.`, `_` and `-` alone"
        raise UserError(repr(name), what, "see the names in cells.yaml")
    return name


@dataclass(frozen=True)
class Parent:
    """An artifact that another one is made from.

    Attributes:
        path: Its folder.
        kind: What it has to be.
    """

    path: Path
    kind: str


@dataclass(frozen=True)
class Node:
    """One stage at one point of the grid.

    Attributes:
        stage: Key of ``KINDS``.
        point: Values of its axes, in their order.
        blocks: The params it depends on: their key on its card, and that in params.yaml, which
            differs for the other model's data.
        code: The modules that its result depends on.
        parents: What it is made from, by role.
        artifact: Folder of its result.
        timing: File of its wall times, which no hash may depend on.
        of_other: Whether it belongs to the other model of Table 5.
    """

    stage: str
    point: Mapping[str, str | int]
    blocks: Mapping[str, str]
    code: Code
    parents: Mapping[str, Parent]
    artifact: Path
    timing: Path
    of_other: bool = False

    @property
    def kind(self) -> str:
        """The kind of artifact it makes."""
        return KINDS[self.stage]

    @property
    def cell(self) -> str:
        """Its name among the nodes of its stage: what it is, and never a position; "" for one."""
        values = [str(value) for value in self.point.values()]
        return "-".join(["other", *values] if self.of_other else values)

    @property
    def name(self) -> str:
        """Its name in DVC."""
        return f"{self.stage}@{self.cell}" if self.cell else self.stage

    @property
    def student(self) -> Cell | None:
        """The one student that it makes; None: it makes none."""
        return Cell(**self.point) if self.stage == "distill" else None  # type: ignore[arg-type]

    @property
    def arm(self) -> Arm:
        """The arm of its student.

        Raises:
            KeyError: It makes no student.
        """
        return ARMS[str(self.point["variant"])]

    @property
    def method(self) -> str:
        """The method, control or known shift of its pool; "" for a teacher and the report."""
        return str(self.point.get("method", ""))

    @property
    def fields(self) -> dict[str, str]:
        """The axes as text; the other model's teacher goes by `other`, or would pass for ours."""
        named = {"teacher": "other"} if self.of_other else {}
        return {named.get(axis, axis): str(value) for axis, value in self.point.items()}
