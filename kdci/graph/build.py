"""The nodes that the params ask for, with what each is made from, parents first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kdci.config.params import Params
from kdci.deconfounding.arms import ARMS, Arm
from kdci.errors import UserError
from kdci.graph.code import Code
from kdci.graph.node import Node, Parent
from kdci.store.layout import Cell, Layout, all_cells, cells, control_cells, shift_cells
from kdci.substitution.block import MethodBlock
from kdci.substitution.registry import module_of

_DATA = ("data.name", "data.facts")
"""What every stage but those that open the data knows of it."""


@dataclass(frozen=True)
class Graph:
    """All nodes of an experiment, each after those it is made from.

    Attributes:
        params: The experiment.
        layout: Its places.
        nodes: By name.
    """

    params: Params
    layout: Layout
    nodes: Mapping[str, Node] = field(repr=False)

    def node(self, stage: str, cell: str) -> Node:
        """Return the node of a cell.

        Raises:
            UserError: The params ask for no such cell.
        """
        for node in self.of_stage(stage):
            if node.cell == cell:
                return node
        known = ", ".join(node.cell for node in self.of_stage(stage)[:3]) or "none"
        what = f"is no cell of `{stage}` with these params"
        raise UserError(cell, what, f"see cells.yaml: {known}, ...")

    def of_stage(self, stage: str) -> list[Node]:
        """Return the nodes of a stage."""
        return self._by_stage.get(stage, [])

    @property
    def makers(self) -> list[Node]:
        """The nodes whose results are artifacts with a card: all but the report."""
        return [node for node in self.nodes.values() if node.stage != "report"]

    @cached_property
    def _by_stage(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            found.setdefault(node.stage, []).append(node)
        return found

    @cached_property
    def by_artifact(self) -> dict[Path, Node]:
        """The nodes by the folder of their result."""
        return {node.artifact: node for node in self.nodes.values()}

    def values(self, node: Node) -> dict[str, Any]:
        """Return the values that a node depends on, by their key on its card, as JSON types.

        Raises:
            TypeError: The params were read without their methods; see ``load_params``.
        """
        images = [
            key.partition(".")[2] for key in node.blocks.values() if key.startswith("methods.")
        ]
        if not all(isinstance(self.params.methods[name], MethodBlock) for name in images):
            raise TypeError("read the params with their methods: without, defaults are missing")
        return {key: _at(self._tree, place) for key, place in node.blocks.items()}

    @cached_property
    def _tree(self) -> dict[str, Any]:
        return self.params.model_dump(mode="json", by_alias=True)


def graph_of(params: Params, root: Path) -> Graph:
    """Return the graph of an experiment.

    Args:
        params: The experiment; its methods' blocks need not have been validated.
        root: The project folder.

    Raises:
        UserError: Two nodes would have one name.
    """
    layout = Layout(root, params.preset)
    found = list(_Branch(params, layout).nodes())
    if params.grid.others:
        found = [*_Branch(params.of_other(), layout.other).nodes(), *found]
    named: dict[str, Node] = {}
    for node in sorted(found, key=lambda node: not node.of_other):
        if node.name in named:
            what = "stands for two cells: names of backbones, methods and shifts run together"
            raise UserError(node.name, what, "rename the shift, or split the grid")
        named[node.name] = node
    return Graph(params, layout, named)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


class _Branch:
    """The nodes of one pre-trained model's pipeline: the teachers', or the other model's."""

    def __init__(self, params: Params, layout: Layout) -> None:
        self._params = params
        self._layout = layout
        self._of_other = bool(layout.branch)

    def nodes(self) -> Iterator[Node]:
        """Yield them, parents first; the other model's pipeline ends in its dictionaries."""
        grid, of_shifts = self._params.grid, []
        of_methods = of_pools = list(cells(grid))
        if not self._of_other:
            of_pools = [*of_methods, *control_cells(grid)]
            of_shifts = list(shift_cells(grid))
        yield from self._teachers()
        yield from self._pools("substitute", of_pools)
        yield from self._pools("shift", of_shifts)
        yield from self._pools("dictionary", [*of_methods, *of_shifts])
        if not self._of_other:
            yield from map(self._student, all_cells(grid))
            yield from self._evaluations()
            yield self._report()

    def _node(
        self,
        stage: str,
        point: Mapping[str, str | int],
        artifact: Path,
        blocks: Iterable[str],
        code: Code,
        parents: Mapping[str, Parent],
    ) -> Node:
        prefix = "other." if self._of_other else ""
        places = {key: prefix + key if key.split(".")[0] == "data" else key for key in blocks}
        timing = self._layout.timing(artifact)
        return Node(stage, point, places, code, parents, artifact, timing, self._of_other)

    # -- stages -------------------------------------------------------------------------------

    def _teachers(self) -> Iterator[Node]:
        params = self._params
        for teacher in params.grid.teachers:
            finished = params.teacher.artifact_of(teacher, params.data.name)
            place = None if finished is None else self._layout.root / finished
            yield self._node(
                "teacher",
                {"teacher": teacher},
                self._layout.teacher(teacher),
                ("runtime", "backbone", "data", "teacher"),
                Code("teacher", ("stages.teacher", "kdci.config.recipes")),
                {} if place is None else {"adopted": Parent(place, "teacher")},
            )

    def _pools(self, stage: str, of_stage: Sequence[Cell]) -> Iterator[Node]:
        """Yield a node of `substitute`, `shift` or `dictionary` for each pool of students."""
        make = {"substitute": self._substitute, "shift": self._shift}.get(stage, self._dictionary)
        pools = dict.fromkeys((cell.teacher, cell.method, cell.pool_seed) for cell in of_stage)
        for teacher, method, pool_seed in pools:
            yield make({"teacher": teacher, "method": method, "pool_seed": pool_seed})

    def _substitute(self, point: Mapping[str, Any]) -> Node:
        method = point["method"]
        blocks = ("runtime", "budget", *_DATA, "pool", f"methods.{method}")
        roots = ("stages.substitute", "kdci.config.recipes", module_of(method))
        code = Code(f"substitute-{method}", roots)
        parents = {"teacher": self._teacher_of(point["teacher"])}
        return self._node("substitute", point, self._layout.pool(**point), blocks, code, parents)

    def _shift(self, point: Mapping[str, Any]) -> Node:
        base = {**point, "method": self._params.base_of(point["method"])}
        blocks = ("runtime", *_DATA, "shift", f"shifts.{point['method']}")
        code = Code("shift", ("stages.shift",))
        pool = Parent(self._layout.pool(**base), "pool")
        parents = {"teacher": self._teacher_of(point["teacher"]), "base": pool}
        return self._node("shift", point, self._layout.pool(**point), blocks, code, parents)

    def _dictionary(self, point: Mapping[str, Any]) -> Node:
        parents = {
            "teacher": self._teacher_of(point["teacher"]),
            "pool": Parent(self._layout.pool(**point), "pool"),
        }
        # The other model's own dictionary is what is asked for there, whatever the teacher adopts.
        adopted = None if self._of_other else self._params.dictionary.artifact
        if adopted is not None:
            parents["dictionary"] = Parent(self._layout.root / adopted, "dictionary")
        return self._node(
            "dictionary",
            point,
            self._layout.dictionary(**point),
            ("runtime", *_DATA, "dictionary"),
            Code("dictionary", ("stages.dictionary",)),
            parents,
        )

    def _student(self, cell: Cell) -> Node:
        arm, method = ARMS[cell.variant], cell.method
        pool = (cell.teacher, method, cell.pool_seed)
        is_shift = method in self._params.grid.shifts
        blocks = ["runtime", "budget", "backbone", *_DATA]
        blocks += ["shift", f"shifts.{method}"] if is_shift else [f"methods.{method}"]
        blocks += [f"recipes.{self._params.base_of(method)}", "distill"]
        blocks += ["compensation"] if arm.compensated else []
        blocks += arm.settings
        parents = {
            "teacher": self._teacher_of(cell.teacher),
            "pool": Parent(self._layout.pool(*pool), "pool"),
            **self._borrowed(cell, arm),
        }
        source = () if is_shift else (module_of(method),)
        name = "distill-" + ("shift" if is_shift else method) + f"-{cell.variant}"
        code = Code(
            name,
            ("stages.distill", "kdci.config.recipes", *source, *_modules_of(arm)),
            cut=_OF_SOME_ARMS,
            values=repr(arm),
        )
        artifact = self._layout.student(cell)
        return self._node("distill", cell.asdict(), artifact, blocks, code, parents)

    def _borrowed(self, cell: Cell, arm: Arm) -> dict[str, Parent]:
        """Return the dictionary that an arm uses, if any."""
        if arm.dictionary is None:
            return {}
        layout, teacher = self._layout, cell.teacher
        if arm.dictionary == "other":
            layout = layout.other
            teacher = self._params.grid.other_of(cell.teacher, cell.student)
        place = layout.dictionary(teacher, cell.method, cell.pool_seed)
        return {"dictionary": Parent(place, "dictionary")}

    def _evaluations(self) -> Iterator[Node]:
        groups: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in all_cells(self._params.grid):
            groups.setdefault((cell.teacher, cell.student, cell.method), []).append(cell)
        for (teacher, student, method), own in groups.items():
            students = {cell.name: Parent(self._layout.student(cell), "student") for cell in own}
            pools = {
                f"pool{seed}": Parent(self._layout.pool(teacher, method, seed), "pool")
                for seed in sorted({cell.pool_seed for cell in own})
            }
            yield self._node(
                "evaluate",
                {"teacher": teacher, "student": student, "method": method},
                self._layout.evaluation(teacher, student, method),
                ("runtime", "data", "evaluate"),
                Code("evaluate", ("stages.evaluate",)),
                {"teacher": self._teacher_of(teacher), **students, **pools},
            )

    def _report(self) -> Node:
        blocks, code = ("preset", "grid", "data"), Code("report", ("stages.report",))
        return self._node("report", {}, self._layout.report, blocks, code, {})

    def _teacher_of(self, teacher: str) -> Parent:
        return Parent(self._layout.teacher(teacher), "teacher")


_CONFOUNDER = "kdci.deconfounding.confounder"
_REBUILDING = (_CONFOUNDER, "kdci.deconfounding.clustering", "kdci.deconfounding.rebuilding")
_COMPENSATION = "kdci.deconfounding.compensation"
_STRATA = "kdci.deconfounding.strata"
_ADJUSTMENT = "kdci.deconfounding.logit_adjustment"
_OF_SOME_ARMS = frozenset({*_REBUILDING, _COMPENSATION, _STRATA, _ADJUSTMENT})
"""What only some arms use."""


def _modules_of(arm: Arm) -> Iterator[str]:
    """Yield what an arm computes with: vanilla with nothing of KDCI."""
    if arm.compensated:
        yield _COMPENSATION
    if arm.compensated and arm.dictionary == "own" and not arm.strata:
        yield from _REBUILDING
    if arm.strata:
        yield _STRATA
    if arm.strata in ("prototypes", "chosen"):
        yield _CONFOUNDER  # the space of the predictions
    if arm.adjusted:
        yield _ADJUSTMENT
