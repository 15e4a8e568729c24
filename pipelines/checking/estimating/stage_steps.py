"""What each stage computes and reads, in steps of networks and in images that are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from kdci.config.catalog import stem_for
from kdci.config.params import Params
from kdci.deconfounding.arms import Arm
from kdci.graph.node import Node
from kdci.methods.mosaick import Mosaick
from kdci.methods.noise import Noise
from kdci.store.layout import all_cells
from kdci.substitution.block import MethodBlock
from kdci.training.evaluation import PREDICTION_BATCH
from kdci.training.snapshots import snapshot_steps
from pipelines.checking.estimating.counting import Counted
from pipelines.checking.estimating.formulas import (
    STRATUM_BATCH,
    Nets,
    Tally,
    construction_steps,
    labelling_steps,
    passes,
    pool_steps,
    refresh_steps,
    step_steps,
    times,
)
from stages.evaluate import NUM_FRECHET_IMAGES

MANY_ROWS = 200_000
"""Above it a dictionary is built in three passes over its pool; see ``clustering``."""


class Reading(NamedTuple):
    """Images that are decoded.

    Attributes:
        dataset: Name of the dataset whose images' size they have.
        source: `data`, or the number of an open world's part after the method's key: `dfnd.0`.
    """

    dataset: str
    source: str


@dataclass
class Side:
    """The params of one pre-trained model's pipeline, with what was counted.

    Attributes:
        params: Its own: those of the other model have other data.
        train: Training images.
        test: Test images.
        parts: Open-world sources, by method.
    """

    params: Params
    train: Counted
    test: Counted
    parts: dict[str, list[Counted]] = field(default_factory=dict)

    @property
    def nets(self) -> Nets:
        """The networks."""
        spec = self.params.data.spec
        return Nets(spec, stem_for(self.params.backbone.stem, spec.image_size))

    def num_open_world(self, method: str) -> int:
        """Return how many images a method chooses from."""
        found = sum(part.num_images or 0 for part in self.parts.get(method, ()))
        open_world = getattr(self.params.method(method), "open_world", None)
        most = open_world.num_images if open_world is not None else 0
        return min(found, most) if most else found

    def block(self, method: str, teacher: str, student: str | None = None) -> MethodBlock:
        """Return a pool's block; a pool with a known shift is as idle as one of noise."""
        if method in self.params.grid.shifts:
            return Noise()
        return self.params.method(method, teacher=teacher, student=student)

    def kept(self, method: str, teacher: str) -> tuple[int, int]:
        """Return a pool's images for the student, and those held out."""
        params = self.params
        made = params.method(method, teacher=teacher).num_pool_images
        held = max(1, round(params.pool.holdout * made))
        if method in params.grid.shifts and params.shift is not None:
            return params.shift.num_images, held
        return made - held, held


@dataclass
class StageWork:
    """What a stage does.

    Attributes:
        steps: How often each step is taken.
        reads: How many images are decoded, by where they lie.
        unknown: What of it could not be counted, in words.
    """

    steps: Tally = field(default_factory=Counter)
    reads: Counter[Reading] = field(default_factory=Counter)
    unknown: list[str] = field(default_factory=list)


def stage_work(stage: Node, side: Side) -> StageWork:
    """Return what a stage computes and reads."""
    return _STAGES[stage.stage](stage, side)


def _teacher(stage: Node, side: Side) -> StageWork:
    """stages/teacher.py and kdci/training/supervised.py: epochs, then the test images."""
    params, name = side.params, str(stage.point["teacher"])
    subject, work = side.nets.backbone(name), StageWork()
    if params.data.test is not None:
        work.steps += _test_pass(work, side, name, PREDICTION_BATCH)
        _read(work, side, side.test, num_passes=1)
    if params.teacher.artifact is not None:
        return work
    count = side.train.num_images
    if count is None:
        work.unknown.append("training: number of images not known")
        return work
    batch, epochs = min(params.teacher.batch_size, count), params.teacher.num_epochs
    steps = epochs * -(-count // batch)
    work.steps += times(passes("train", subject, batch, batch), steps)
    # A step's batch is read when it is its turn, where images stay in their files.
    _read(work, side, side.train, num_passes=epochs)
    return work


def _substitute(stage: Node, side: Side) -> StageWork:
    """stages/substitute.py: the method's preparation, then the teacher's logits of the pool."""
    teacher, method = str(stage.point["teacher"]), str(stage.point["method"])
    block, nets = side.block(method, teacher), side.nets
    kept, _ = side.kept(method, teacher)
    work = StageWork(pool_steps(block, nets, teacher, side.num_open_world(method)))
    work.steps += construction_steps(block, nets, teacher)
    work.steps += passes("forward", nets.backbone(teacher), kept, PREDICTION_BATCH)
    # Those that are chosen are read twice: kdci/data/open_world/scores.py, `_store`.
    chosen, available = getattr(block, "num_selected", 0), side.num_open_world(method)
    for number, part in enumerate(side.parts.get(method, ())):
        once = part.num_images or 0
        again = chosen * once // available if available else 0
        work.reads[Reading(side.params.data.name, f"{method}.{number}")] += once + again
    return work


def _shift(stage: Node, side: Side) -> StageWork:
    """stages/shift.py: the teacher's logits of the resampled pool."""
    teacher = str(stage.point["teacher"])
    kept, _ = side.kept(str(stage.point["method"]), teacher)
    return StageWork(passes("forward", side.nets.backbone(teacher), kept, PREDICTION_BATCH))


def _dictionary(stage: Node, side: Side) -> StageWork:
    """stages/dictionary.py: passes of the teacher over the pool; an adopted one costs nothing."""
    if side.params.dictionary.artifact is not None and not stage.of_other:
        return StageWork()
    teacher = str(stage.point["teacher"])
    kept, _ = side.kept(str(stage.point["method"]), teacher)
    one = passes("forward", side.nets.backbone(teacher), kept, PREDICTION_BATCH)
    return StageWork(times(one, 3 if kept > MANY_ROWS else 1))


def _distill(stage: Node, side: Side) -> StageWork:
    """stages/distill.py, kdci/training/distillation.py: refreshes, and a step after the other."""
    cell, params, nets = stage.point, side.params, side.nets
    teacher, student, method = str(cell["teacher"]), str(cell["student"]), str(cell["method"])
    arm = stage.arm
    block, recipe = side.block(method, teacher, student), params.recipe(method)
    kept, _ = side.kept(method, teacher)
    stratified = arm.strata is not None
    work = StageWork(construction_steps(block, nets, teacher))
    work.steps += refresh_steps(block, nets, teacher, student, recipe)
    one = step_steps(block, nets, teacher, student, recipe.batch_size, strata=stratified)
    work.steps += times(one, recipe.num_steps)
    if stratified:
        drawn = kept
        if isinstance(block, Mosaick):
            drawn = round(kept * block.num_selected / block.num_pool_images)
        work.steps += labelling_steps(block, nets, teacher, recipe, drawn)
    if _rebuilds(params, arm):
        work.steps += _rebuilding(block, params, method, nets, teacher, kept)
    return work


def _rebuilds(params: Params, arm: Arm) -> bool:
    own = arm.compensated and arm.dictionary == "own" and arm.strata is None
    return own and params.compensation.rebuild is not None and params.dictionary.artifact is None


def _rebuilding(
    block: MethodBlock, params: Params, method: str, nets: Nets, teacher: str, kept: int
) -> Tally:
    """kdci/deconfounding/rebuilding.py: each image is predicted once the bank has grown enough."""
    growth = params.compensation.rebuild
    assert growth is not None
    tally: Tally = Counter()
    predicted, clustered, size = 0, kept, kept
    for _ in range(block.num_refreshes(params.recipe(method))):
        size += block.num_refresh_images
        if size >= (1 + growth) * clustered:
            tally += passes("forward", nets.backbone(teacher), size - predicted, STRATUM_BATCH)
            predicted = clustered = size
    return tally


def _evaluate(stage: Node, side: Side) -> StageWork:
    """stages/evaluate.py: students and their snapshots, on test images and held-out ones."""
    params, nets, work = side.params, side.nets, StageWork()
    axes = (stage.point["teacher"], stage.point["student"], stage.point["method"])
    teacher, student, method = (str(axis) for axis in axes)
    own = [c for c in all_cells(params.grid) if (c.teacher, c.student, c.method) == axes]
    recipe, batch = params.recipe(method), params.evaluate.batch_size
    marks = snapshot_steps(recipe.num_epochs, recipe.steps_per_epoch, params.distill.num_snapshots)
    kept, held = side.kept(method, teacher)
    pool_seeds, num_passes = len({c.pool_seed for c in own}), len(own) * len(marks)
    teaches, learns = nets.backbone(teacher), nets.backbone(student)
    work.steps += times(passes("forward", teaches, held, batch), pool_seeds)
    work.steps += times(passes("forward", learns, held, batch), num_passes)
    if params.data.test is not None:
        work.steps += times(_test_pass(work, side, teacher, batch), 2)
        work.steps += times(_test_pass(work, side, student, batch), num_passes)
        sample = min(kept, NUM_FRECHET_IMAGES)
        work.steps += times(passes("forward", teaches, sample, batch), pool_seeds)
        _read(work, side, side.test, num_passes=2 + num_passes)
    return work


def _test_pass(work: StageWork, side: Side, backbone: str, batch: int) -> Tally:
    count = side.test.num_images
    if count is None:
        unknown = "scoring: number of test images not known"
        work.unknown += [] if unknown in work.unknown else [unknown]
        return Counter()
    return passes("forward", side.nets.backbone(backbone), count, batch)


def _read(work: StageWork, side: Side, counted: Counted, *, num_passes: int) -> None:
    """Add the images that are decoded: once, or in each pass."""
    seen = (counted.num_images or 0) * (num_passes if counted.is_lazy else 1)
    if seen and not side.params.data.spec.bundled:
        work.reads[Reading(side.params.data.name, "data")] += seen


_STAGES: dict[str, Callable[[Node, Side], StageWork]] = {
    "teacher": _teacher,
    "substitute": _substitute,
    "shift": _shift,
    "dictionary": _dictionary,
    "distill": _distill,
    "evaluate": _evaluate,
}
