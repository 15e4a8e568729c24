"""What a stage takes: counts, which params and methods tell, times what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kdci.config.params import Params
from kdci.deconfounding.clustering import MINI_BATCH_ROWS
from kdci.graph.node import Node
from kdci.store.layout import all_cells
from kdci.training.schedules import snapshot_steps
from pipelines.checking.estimating.counting import Counted
from pipelines.checking.estimating.measured import Backbone, Measurements
from pipelines.checking.estimating.pairs import Pair
from stages.evaluate import NUM_FRECHET_IMAGES


class UnknownError(Exception):
    """A part of a stage's time is not known; says which."""


@dataclass
class Side:
    """The params of one pre-trained model's pipeline, with what was counted.

    Attributes:
        name: `main`, or `other`.
        params: Its own: those of the other model have other data.
        train: Training images.
        test: Test images.
        parts: Open-world sources, by method.
    """

    name: str
    params: Params
    train: Counted
    test: Counted
    parts: dict[str, list[Counted]] = field(default_factory=dict)

    def at_budget(self, budget: float) -> Side:
        """Return the same at another budget."""
        params = self.params.model_copy(update={"budget": budget})
        return Side(self.name, params, self.train, self.test, self.parts)

    def candidates(self, method: str) -> int:
        """Return how many images a method chooses from."""
        found = sum(part.num_images or 0 for part in self.parts.get(method, ()))
        if not found:
            return 0
        most: int = self.params.method(method).open_world.num_images  # type: ignore[attr-defined]
        return min(found, most) if most else found

    def kept(self, method: str, teacher: str) -> tuple[int, int]:
        """Return a pool's images for the student, and those held out."""
        params = self.params
        made = params.method(method, teacher=teacher).num_pool_images
        held = max(1, round(params.pool.holdout * made))
        if method in params.grid.shifts and params.shift is not None:
            return params.shift.num_images, held
        return made - held, held

    def subjects(self, nodes: list[Node]) -> Iterator[tuple[str, Backbone | Pair]]:
        """Yield what has to be measured for some stages: networks, then methods on pairs."""
        axes = [node.point for node in nodes]
        trained = self.params.teacher.artifact is None
        for teacher in dict.fromkeys(str(point["teacher"]) for point in axes):
            yield self.name, Backbone(teacher, trained)
        wanted = {(p["teacher"], p["method"]) for p in axes if "method" in p}
        arms: dict[tuple[str, str, str], list[str]] = {}
        for cell in all_cells(self.params.grid):
            if (cell.teacher, cell.method) in wanted:
                own = arms.setdefault((cell.teacher, cell.student, cell.method), [])
                own += [cell.variant] if cell.variant not in own else []
        known = {str(point["teacher"]) for point in axes}
        for student in dict.fromkeys(s for _, s, _ in arms if s not in known):
            yield self.name, Backbone(student, trained=False)
        for (teacher, student, method), own in arms.items():
            yield self.name, Pair(teacher, student, method, tuple(own), self.candidates(method))


@dataclass(frozen=True)
class StageTimes:
    """Times stages by what was measured.

    Attributes:
        side: The params, at the budget that is asked for.
        measured: What was measured.
    """

    side: Side
    measured: Measurements

    def seconds(self, node: Node) -> float:
        """Return what a stage takes with the start of its process.

        Raises:
            UnknownError: A part of it was not measured, or could not be counted.
        """
        seconds: float = getattr(self, f"_{node.stage}")(node)
        return self.measured.start + seconds

    def _teacher(self, node: Node) -> float:
        """Epochs, then the test images."""
        params, name = self.side.params, str(node.point["teacher"])
        tests = self._tests(name) if params.data.test is not None else 0.0
        if params.teacher.artifact is not None:
            return tests
        train, number = self.side.train, self.side.train.num_images
        if number is None:
            raise UnknownError("training: number of images not known")
        epochs = params.teacher.num_epochs
        steps = epochs * -(-number // min(params.teacher.batch_size, number))
        return tests + steps * self._of(name, "train") + self._decoding(name, train, epochs)

    def _substitute(self, node: Node) -> float:
        """The method's preparation, then the teacher's logits of the pool."""
        pair = self._pair(node, "teacher", "method")
        return float(pair["pool"][str(self.side.params.budget)]) + self._shift(node)

    def _shift(self, node: Node) -> float:
        """The teacher's logits of a pool."""
        teacher, method = str(node.point["teacher"]), str(node.point["method"])
        return self.side.kept(method, teacher)[0] * self._of(teacher, "predict")

    def _dictionary(self, node: Node) -> float:
        """Passes of the teacher over the pool; an adopted one costs nothing."""
        if "dictionary" in node.parents:
            return 0.0
        kept, _ = self.side.kept(str(node.point["method"]), str(node.point["teacher"]))
        passes = 3 if kept > MINI_BATCH_ROWS else 1  # see ``clustering``
        return passes * self._shift(node)

    def _distill(self, node: Node) -> float:
        """Refreshes, a step after the other, and the labels that strata are drawn by."""
        cell, params = node.student, self.side.params
        assert cell is not None
        pair, recipe = self._pair(node, "teacher", "student", "method"), params.recipe(cell.method)
        loop = recipe.num_steps * float(pair["steps"][cell.variant])
        number = 0
        if cell.method not in params.grid.shifts:
            block = params.method(cell.method, teacher=cell.teacher, student=cell.student)
            number = block.num_refreshes(recipe)
            grown = number * block.num_refresh_images
            loop += number * float(pair["refresh"][str(params.budget)])
        if node.arm.strata is None:
            return loop
        kept, _ = self.side.kept(cell.method, cell.teacher)
        labelled = kept + (grown if number else 0)
        return loop + labelled * self._of(cell.teacher, "predict")

    def _evaluate(self, node: Node) -> float:
        """Students and their snapshots, on test images and held-out ones."""
        params = self.side.params
        teacher, student = str(node.point["teacher"]), str(node.point["student"])
        method, recipe = str(node.point["method"]), params.recipe(str(node.point["method"]))
        num_students = sum(parent.kind == "student" for parent in node.parents.values())
        num_pools = sum(parent.kind == "pool" for parent in node.parents.values())
        marks = snapshot_steps(
            recipe.num_epochs, recipe.steps_per_epoch, params.distill.num_snapshots
        )
        passes = num_students * len(marks)
        kept, held = self.side.kept(method, teacher)
        seconds = num_pools * held * self._of(teacher, "predict")
        seconds += passes * held * self._of(student, "predict")
        if params.data.test is None:
            return seconds
        seconds += 2 * self._tests(teacher) + passes * self._tests(student)
        compared = num_pools * min(kept, NUM_FRECHET_IMAGES)
        return seconds + compared * self._of(teacher, "predict")

    def _tests(self, backbone: str) -> float:
        """Return a pass over the test images; those that stay in files are decoded in each."""
        test = self.side.test
        if test.num_images is None:
            raise UnknownError("scoring: number of test images not known")
        return test.num_images * self._of(backbone, "predict") + self._decoding(backbone, test, 1)

    def _decoding(self, backbone: str, counted: Counted, passes: int) -> float:
        if self.side.params.data.spec.bundled:
            return 0.0
        seen = (counted.num_images or 0) * (passes if counted.is_lazy else 1)
        return seen * self._of(backbone, "decoding")

    def _of(self, backbone: str, what: str) -> float:
        found = self.measured.backbone(self.side.name, backbone)
        if found is None:
            raise UnknownError(f"{backbone} was not measured")
        return float(found[what])

    def _pair(self, node: Node, *axes: str) -> dict[str, dict[str, float]]:
        point = {axis: str(node.point[axis]) for axis in axes}
        found = self.measured.pair(self.side.name, **point)
        if found is None:
            raise UnknownError(f"{' '.join(point.values())} was not measured")
        return found
