"""The memory that stages need: networks with what trains them, and what autograd keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kdci.data.open_world.pool import held_bytes
from kdci.graph.node import Node
from kdci.methods.cmi import Cmi
from kdci.methods.deepinv import DeepInv
from kdci.methods.dfnd import Dfnd
from kdci.methods.fast import Fast
from kdci.methods.mosaick import Mosaick
from kdci.probing.subjects import Subject, Work
from kdci.substitution.block import MethodBlock
from pipelines.checking.estimating.counting import image_bytes
from pipelines.checking.estimating.formulas import Nets, call_steps, is_refreshed, step_steps
from pipelines.checking.estimating.probe import Probes
from pipelines.checking.estimating.stage_steps import Side

TRAINED_BY_SGD = 3
"""Weights, gradients, momentum."""
TRAINED_BY_ADAM = 4
"""Weights, gradients, two moments."""
COPIES_OF_FAST = 9
"""Generator with moments and a gradient, its copy with moments and gradients, their sum."""
COPIES_OF_PIXELS = 6
"""Pixels, gradients, two moments, the view, the best batch so far."""
FLOAT_BYTES = 4


@dataclass(frozen=True)
class MemoryNeed:
    """What the heaviest step of a stage needs on its device.

    Attributes:
        stage: Name of the stage.
        batch: Images of the step.
        networks: Bytes of weights, gradients and what optimisers remember.
        activations: Bytes that autograd keeps; None: not probed.
        measured: Sum of the peaks that CUDA showed for the step's parts; None: not measured.
    """

    stage: str
    batch: int
    networks: int
    activations: int | None
    measured: int | None = None

    @property
    def total(self) -> int:
        """Both together."""
        return self.networks + (self.activations or 0)


def stage_memory(stage: Node, side: Side, probes: Probes) -> MemoryNeed | None:
    """Return what a stage needs on its device; None: it trains nothing."""
    kind = stage.stage
    teacher, nets = str(stage.point["teacher"]), side.nets
    if kind == "teacher" and side.params.teacher.artifact is None:
        work = Work("train", nets.backbone(teacher), side.params.teacher.batch_size)
        networks = TRAINED_BY_SGD * probes.weights.get(work.subject, 0)
        return _need(stage, [work], networks, probes)
    if kind not in ("substitute", "distill"):
        return None
    method = str(stage.point["method"])
    student = str(stage.point["student"]) if kind == "distill" else None
    block = side.block(method, teacher, student)
    networks = probes.weights.get(nets.backbone(teacher), 0) + _of_source(block, nets, probes)
    calls = []
    if student is None or is_refreshed(block):
        calls.append(list(call_steps(block, nets, teacher, student)))
    if student is not None:
        networks += TRAINED_BY_SGD * probes.weights.get(nets.backbone(student), 0)
        batch = side.params.recipe(method).batch_size
        calls.append(list(step_steps(block, nets, teacher, student, batch)))
    needs = [_need(stage, works, networks, probes) for works in calls if works]
    return max(needs, key=lambda need: need.total, default=None)


def _of_source(block: MethodBlock, nets: Nets, probes: Probes) -> int:
    """Return the bytes of what a method trains beside the student."""
    copies = COPIES_OF_FAST if isinstance(block, Fast) else TRAINED_BY_ADAM
    works = call_steps(block, nets, "", None)
    trained = {w.subject for w in works if w.kind in ("fit", "play", "contrast")}
    found = sum(copies * probes.weights.get(subject, 0) for subject in trained)
    if isinstance(block, DeepInv):
        found += COPIES_OF_PIXELS * FLOAT_BYTES * block.batch_size * image_bytes(nets.spec)
    return found


def _need(stage: Node, works: Iterable[Work], networks: int, probes: Probes) -> MemoryNeed:
    activations, peaks, batch = list[int | None](), list[int | None](), 0
    for work in works:
        batch = max(batch, work.batch)
        if work.kind in ("forward", "generate"):
            continue
        kept = probes.activations.get((work.kind, work.subject))
        activations.append(None if kept is None else kept.num_bytes(work.batch))
        peaks.append(probes.peaks.get(work))
    return MemoryNeed(stage.name, batch, networks, _sum(activations), _sum(peaks))


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# -- the host ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostNeed:
    """Images that lie in the memory of the host.

    Attributes:
        what: In words.
        num_bytes: How many.
    """

    what: str
    num_bytes: int


def host_needs(stage: Node, side: Side, features: dict[Subject, int]) -> list[HostNeed]:
    """Return what a stage holds in host memory, if it is images or CMI's memory.

    A pool is no part of it, however large: it lies in a file.

    Args:
        stage: Which.
        side: Its params.
        features: Number of features that CMI reads, by backbone.
    """
    kind = stage.stage
    spec = side.params.data.spec
    each, teacher = image_bytes(spec), str(stage.point["teacher"])
    if kind == "teacher" and not side.train.is_lazy and side.params.teacher.artifact is None:
        count = side.train.num_images or 0
        return [HostNeed(f"{count:,} training images", count * each)]
    if kind != "substitute":
        return []
    method = str(stage.point["method"])
    block = side.block(method, teacher)
    found = []
    if isinstance(block, Mosaick | Dfnd):
        size = held_bytes(each, block.score_batch_size)
        found.append(HostNeed(f"the open world of {method}, as it is read and scored", size))
    if isinstance(block, Cmi):
        length = features.get(side.nets.backbone(teacher), 0)
        size = block.memory_size * 2 * length * FLOAT_BYTES
        found.append(HostNeed("the memory of cmi", size))
    return found
