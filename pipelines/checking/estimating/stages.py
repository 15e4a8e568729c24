"""What a stage needs: counts, which params and methods tell, times what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kdci.config.params import Params
from kdci.data.open_world.candidates import PoolPart
from kdci.deconfounding.clustering import MINI_BATCH_ROWS
from kdci.graph.node import Node
from kdci.store.layout import Cell, all_cells
from kdci.training.schedules import snapshot_steps
from pipelines.checking.estimating.counting import Counted, image_bytes
from pipelines.checking.estimating.measured import Measurements
from pipelines.checking.estimating.subjects import Backbone, Pair, Subject
from stages.evaluate import NUM_FRECHET_IMAGES

FLOAT_BYTES = 4


class _UnknownError(Exception):
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
    parts: dict[str, list[tuple[PoolPart, Counted]]] = field(default_factory=dict)

    def at_budget(self, budget: float) -> Side:
        """Return the same at another budget."""
        params = self.params.model_copy(update={"budget": budget})
        return Side(self.name, params, self.train, self.test, self.parts)

    def candidates(self, method: str) -> int:
        """Return how many images a method chooses from."""
        found = sum(counted.num_images or 0 for _, counted in self.parts.get(method, ()))
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

    def num_snapshots(self, method: str) -> int:
        """Return how often a method's student is kept while it is distilled."""
        recipe, number = self.params.recipe(method), self.params.distill.num_snapshots
        return len(snapshot_steps(recipe.num_epochs, recipe.steps_per_epoch, number))

    def refreshed(self, cell: Cell) -> tuple[int, int]:
        """Return how often a student's images are refreshed, and how many that adds in all."""
        if cell.method in self.params.grid.shifts:
            return 0, 0
        block = self.params.method(cell.method, teacher=cell.teacher, student=cell.student)
        number = block.num_refreshes(self.params.recipe(cell.method))
        return number, number * block.num_refresh_images

    def subjects(self, nodes: list[Node]) -> Iterator[tuple[str, Subject]]:
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
class StageNeed:
    """What one stage takes.

    Attributes:
        name: Its name in DVC.
        kind: What it makes.
        method: Of its pool; "" for teachers.
        adopts: Whether it takes a teacher over that is there.
        seconds: With the start of its process; None: not known.
        unknown: Why they are not; "": they are.
        num_bytes: Of its artifact on disk; None: not known, 0: little.
        work_bytes: Of what lies beside it while it is made.
        memory: The most that was taken while it was measured, of the device; on the CPU of the
            whole process. 0: it was not measured.
    """

    name: str
    kind: str
    method: str
    adopts: bool
    seconds: float | None
    unknown: str
    num_bytes: int | None
    work_bytes: int
    memory: int


@dataclass(frozen=True)
class Meter:
    """Tells what stages need by what was measured.

    Attributes:
        side: The params, at the budget that is asked for.
        measured: What was measured.
    """

    side: Side
    measured: Measurements

    def need(self, node: Node) -> StageNeed:
        """Return what a stage takes; parts that were not measured or counted are not known."""
        adopts = node.stage == "teacher" and self.side.params.teacher.artifact is not None
        seconds, unknown = None, ""
        try:
            seconds = self.measured.start + getattr(self, f"_{node.stage}")(node)
        except _UnknownError as error:
            unknown = f"{node.stage}: {error}"
        num_bytes, work_bytes = self._disk(node)
        memory = 0 if adopts else self._memory(node)
        of_stage = (node.name, node.kind, node.method, adopts)
        return StageNeed(*of_stage, seconds, unknown, num_bytes, work_bytes, memory)

    # -- disk and memory ----------------------------------------------------------------------

    def _disk(self, node: Node) -> tuple[int | None, int]:
        """Return the bytes of a stage's artifact, and of what lies beside it while it is made."""
        side, spec = self.side, self.side.params.data.spec
        if node.kind == "teacher":
            return self._state(str(node.point["teacher"])), 0
        if node.kind == "pool":
            kept, held = side.kept(node.method, str(node.point["teacher"]))
            images = (kept + held) * image_bytes(spec)
            # The images lie in the work folder until the pool is stored.
            return images + kept * spec.num_classes * FLOAT_BYTES, images
        if node.student is None:
            return 0, 0
        state = self._state(node.student.student)
        grown = side.refreshed(node.student)[1] * image_bytes(spec)
        return (None if state is None else state * (1 + side.num_snapshots(node.method))), grown

    def _state(self, backbone: str) -> int | None:
        found = self.measured.of(self.side.name, Backbone, name=backbone)
        return None if found is None else int(found["state"])

    def _memory(self, node: Node) -> int:
        """Return the most memory; a teacher's training images are added, where they lie in it."""
        axes = {axis: str(value) for axis, value in node.point.items()}
        if node.stage == "teacher":
            one = self.measured.of(self.side.name, Backbone, name=axes["teacher"]) or {}
            train = self.side.train
            images = 0 if train.is_lazy else train.num_images or 0
            return int(one.get("peak", 0)) + images * image_bytes(self.side.params.data.spec)
        if node.stage not in ("substitute", "distill"):
            return 0
        own = {axis: axes[axis] for axis in ("teacher", "student", "method") if axis in axes}
        one = self.measured.of(self.side.name, Pair, **own) or {}
        return int(one.get("peak" if node.stage == "distill" else "pool_peak", 0))

    # -- seconds ------------------------------------------------------------------------------

    def _teacher(self, node: Node) -> float:
        """Epochs, then the test images."""
        params, name = self.side.params, str(node.point["teacher"])
        tests = self._tests(name) if params.data.test is not None else 0.0
        if params.teacher.artifact is not None:
            return tests
        train, number = self.side.train, self.side.train.num_images
        if number is None:
            raise _UnknownError("training: number of images not known")
        epochs = params.teacher.num_epochs
        steps = epochs * -(-number // min(params.teacher.batch_size, number))
        return tests + steps * self._of(name, "train") + self._decoding(name, train, epochs)

    def _substitute(self, node: Node) -> float:
        """The method's preparation, then the teacher's logits of the pool."""
        pool = self._pair(node, "teacher", "method")["pool"]
        return float(pool[str(self.side.params.budget)]) + self._shift(node)

    def _shift(self, node: Node) -> float:
        """The teacher's logits of a pool."""
        teacher = str(node.point["teacher"])
        return self.side.kept(node.method, teacher)[0] * self._of(teacher, "predict")

    def _dictionary(self, node: Node) -> float:
        """Passes of the teacher over the pool; an adopted one costs nothing."""
        if "dictionary" in node.parents:
            return 0.0
        kept, _ = self.side.kept(node.method, str(node.point["teacher"]))
        passes = 3 if kept > MINI_BATCH_ROWS else 1  # see ``clustering``
        return passes * self._shift(node)

    def _distill(self, node: Node) -> float:
        """Refreshes, a step after the other, and the labels that strata are drawn by."""
        cell, params = node.student, self.side.params
        assert cell is not None
        pair = self._pair(node, "teacher", "student", "method")
        loop = params.recipe(cell.method).num_steps * float(pair["steps"][cell.variant])
        number, grown = self.side.refreshed(cell)
        loop += number * float(pair["refresh"][str(params.budget)])
        if node.arm.strata is None:
            return loop
        kept, _ = self.side.kept(cell.method, cell.teacher)
        return loop + (kept + grown) * self._of(cell.teacher, "predict")

    def _evaluate(self, node: Node) -> float:
        """Students and their snapshots, on test images and held-out ones."""
        teacher, student = str(node.point["teacher"]), str(node.point["student"])
        num_students = sum(parent.kind == "student" for parent in node.parents.values())
        num_pools = sum(parent.kind == "pool" for parent in node.parents.values())
        passes = num_students * self.side.num_snapshots(node.method)
        kept, held = self.side.kept(node.method, teacher)
        seconds = num_pools * held * self._of(teacher, "predict")
        seconds += passes * held * self._of(student, "predict")
        if self.side.params.data.test is None:
            return seconds
        seconds += 2 * self._tests(teacher) + passes * self._tests(student)
        compared = num_pools * min(kept, NUM_FRECHET_IMAGES)
        return seconds + compared * self._of(teacher, "predict")

    def _tests(self, backbone: str) -> float:
        """Return a pass over the test images; those that stay in files are decoded in each."""
        test = self.side.test
        if test.num_images is None:
            raise _UnknownError("scoring: number of test images not known")
        return test.num_images * self._of(backbone, "predict") + self._decoding(backbone, test, 1)

    def _decoding(self, backbone: str, counted: Counted, passes: int) -> float:
        if self.side.params.data.spec.bundled:
            return 0.0
        seen = (counted.num_images or 0) * (passes if counted.is_lazy else 1)
        return seen * self._of(backbone, "decoding")

    def _of(self, backbone: str, what: str) -> float:
        return float(self._measured(Backbone, name=backbone)[what])

    def _pair(self, node: Node, *axes: str) -> dict[str, dict[str, float]]:
        return self._measured(Pair, **{axis: str(node.point[axis]) for axis in axes})

    def _measured(self, kind: type[Subject], **facts: str) -> dict[str, Any]:
        found = self.measured.of(self.side.name, kind, **facts)
        if found is None:
            raise _UnknownError(f"{' '.join(facts.values())} was not measured")
        return found
