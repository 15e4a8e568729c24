"""Probe what the pending stages need, within a number of seconds; nothing is written."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from kdci.data.open_world.candidates import PoolPart
from kdci.errors import KdciError
from kdci.models.generators.projection_head import ProjectionHead
from kdci.probing.memory import (
    Activations,
    measure_activations,
    measured_peak,
    state_bytes,
    weight_bytes,
)
from kdci.probing.reading import made_up_seconds, seconds_per_image
from kdci.probing.steps import set_mode, step_of
from kdci.probing.subjects import Kind, Subject, Work, build_subject
from kdci.probing.timing import FIRST_BATCH, Curve, Measuring
from kdci.training.runtime import Runtime
from pipelines.checking.estimating.formulas import Tally
from pipelines.checking.estimating.stage_steps import Reading, Side

READING_SECONDS = 1.0
MOST_REPEATS = 3
"""A size is measured again so often, where the next one would take too long."""
_STARTED = "import kdci.training.distillation, kdci.methods.fast, stages.distill"
_WITH_GRADIENT: tuple[Kind, ...] = ("train", "differentiate", "invert", "fit", "contrast", "play")

Key = tuple[Kind, Subject]

RELATIVE: dict[Kind, float] = {"train": 3.0, "invert": 2.8, "differentiate": 2.3, "forward": 1.0}
"""About what steps of one backbone take, against each other."""


@dataclass
class Probes:
    """What was measured.

    Attributes:
        curves: Seconds by batch size.
        activations: What autograd keeps.
        peaks: The most memory on CUDA, by step at its real batch.
        weights: Bytes of a network's parameters.
        states: Bytes of a network's file.
        features: Number of features that CMI reads, by backbone.
        reading: Seconds to decode an image.
        made_up: Sources whose images were made up.
        start: Seconds that a stage's process takes to start.
        missing: Why something was not probed.
        seconds: How long all of it took.
    """

    curves: dict[Key, Curve] = field(default_factory=dict)
    activations: dict[Key, Activations] = field(default_factory=dict)
    peaks: dict[Work, int] = field(default_factory=dict)
    weights: dict[Subject, int] = field(default_factory=dict)
    states: dict[Subject, int] = field(default_factory=dict)
    features: dict[Subject, int] = field(default_factory=dict)
    reading: dict[Reading, float] = field(default_factory=dict)
    made_up: list[Reading] = field(default_factory=list)
    start: float = 0.0
    missing: dict[Key, str] = field(default_factory=dict)
    seconds: float = 0.0

    def step_seconds(self, work: Work) -> float | None:
        """Return what a step takes; None: neither it nor another step of its network was probed.

        What another one stands in for is right within a factor of two or so.
        """
        curve = self.curves.get((work.kind, work.subject))
        if curve is not None:
            return curve.seconds(work.batch)
        for kind, share in RELATIVE.items():
            curve = self.curves.get((kind, work.subject))
            if curve is not None and work.kind in RELATIVE:
                return curve.seconds(work.batch) * RELATIVE[work.kind] / share
        return None


def probe(
    tally: Tally,
    readings: Iterable[Reading],
    sides: Mapping[str, Side],
    parts: Mapping[Reading, PoolPart],
    runtime: Runtime,
    *,
    seconds: float,
) -> Probes:
    """Measure the steps, the most needed ones first.

    Args:
        tally: All steps of all stages.
        readings: All images that are decoded.
        sides: By name of their dataset, for the images' size.
        parts: The open-world sources among the readings.
        runtime: Device, precision and threads of the stages.
        seconds: In about this time; what is not reached is listed as missing.
    """
    began, found = time.monotonic(), Probes()
    deadline = began + seconds
    if tally:
        found.start = _process_start(found, deadline)
    for reading in readings:
        spec = sides[reading.dataset].params.data.spec
        if reading in parts:
            rate, own = seconds_per_image(parts[reading], spec, seconds=READING_SECONDS)
        else:
            rate, own = made_up_seconds(spec, seconds=READING_SECONDS), False
        found.reading[reading] = rate
        found.made_up += [] if own else [reading]
    _probe_networks(tally, runtime, found, deadline)
    found.seconds = time.monotonic() - began
    return found


def _process_start(found: Probes, deadline: float) -> float:
    """Return how long a stage's process takes before its work begins."""
    began = time.monotonic()
    limit = max(1.0, deadline - began)
    try:
        subprocess.run([sys.executable, "-c", _STARTED], check=True, timeout=limit)
    except (subprocess.SubprocessError, OSError):
        return 0.0
    return time.monotonic() - began


def _probe_networks(tally: Tally, runtime: Runtime, found: Probes, deadline: float) -> None:
    """Measure every step on a few images, then those that take the most on more of them."""
    largest: dict[Key, int] = {}
    images: Counter[Key] = Counter()
    for work, count in tally.items():
        key = (work.kind, work.subject)
        largest[key] = max(largest.get(key, 0), work.batch)
        images[key] += count * work.batch
    measuring: dict[Key, Measuring] = {}
    modules: dict[Subject, nn.Module] = {}
    for key in sorted(images, key=lambda key: -images[key]):
        try:
            module = _built(key[1], modules, runtime, found, deadline)
            measuring[key] = _begin(key, module, runtime, largest[key])
        except (KdciError, MemoryError, RuntimeError) as error:
            found.missing[key] = (str(error).splitlines() or ["out of memory"])[0][:120]
            continue
        found.curves[key] = measuring[key].curve
    _count_activations(measuring, modules, runtime, found, deadline)
    _refine(tally, measuring, modules, deadline)
    for key, measured in measuring.items():
        found.curves[key] = measured.curve
        peak = _peak(key, modules[key[1]], runtime, largest[key], measured.curve)
        if peak is not None:
            found.peaks[Work(*key, largest[key])] = peak


def _refine(
    tally: Tally,
    measuring: Mapping[Key, Measuring],
    modules: Mapping[Subject, nn.Module],
    deadline: float,
) -> None:
    """Measure on larger batches, always that of which the largest part of the time depends."""
    repeats: Counter[Key] = Counter()
    while True:
        left = deadline - time.monotonic()
        needs = _unmeasured_seconds(tally, measuring)
        for key in sorted(needs, key=lambda key: -needs[key]):
            measured = measuring[key]
            set_mode(key[0], modules[key[1]])
            if measured.next_seconds < left:
                measured.extend()
                break
            # What takes too long to go on with may have been disturbed.
            if repeats[key] < MOST_REPEATS and measured.again_seconds < left:
                measured.repeat()
                repeats[key] += 1
                break
        else:
            return


def _unmeasured_seconds(tally: Tally, measuring: Mapping[Key, Measuring]) -> dict[Key, float]:
    """Return what steps take in batches larger than measured, of those that can be measured."""
    needs: dict[Key, float] = {}
    for work, count in tally.items():
        key = (work.kind, work.subject)
        measured = measuring.get(key)
        if measured is None or measured.is_done or work.batch <= measured.curve.largest:
            continue
        needs[key] = needs.get(key, 0.0) + count * measured.curve.seconds(work.batch)
    return needs


def _count_activations(
    keys: Iterable[Key],
    modules: Mapping[Subject, nn.Module],
    runtime: Runtime,
    found: Probes,
    deadline: float,
) -> None:
    """Count what steps keep for their way back."""
    for kind, subject in keys:
        if kind in _WITH_GRADIENT and time.monotonic() < deadline:
            step = step_of(kind, subject, modules[subject], runtime)
            found.activations[kind, subject] = measure_activations(step, [modules[subject]])


def _begin(key: Key, module: nn.Module, runtime: Runtime, largest: int) -> Measuring:
    """Time a step on a few images."""
    kind, subject = key
    step = step_of(kind, subject, module, runtime)
    # Most of what a contrast computes is the memory's, whatever the batch.
    first = largest if kind == "contrast" else FIRST_BATCH
    processor = time.process_time if runtime.device.type == "cpu" else None
    measured = Measuring(
        step, largest=largest, first=first, settle=_settle(runtime), processor=processor
    )
    measured.extend()
    return measured


def _peak(key: Key, module: nn.Module, runtime: Runtime, largest: int, curve: Curve) -> int | None:
    """Return the memory that CUDA showed for a step at its real batch, if it fits."""
    if runtime.device.type != "cuda" or curve.largest < largest:
        return None
    return measured_peak(step_of(*key, module, runtime), largest, runtime.device)


def _weigh(subject: Subject, module: nn.Module, found: Probes) -> None:
    found.weights[subject], found.states[subject] = weight_bytes(module), state_bytes(module)
    if isinstance(module, ProjectionHead):
        backbone = Subject("backbone", subject.name, subject.spec, subject.stem)
        found.features[backbone] = module.hidden.in_features


def _built(
    subject: Subject,
    modules: dict[Subject, nn.Module],
    runtime: Runtime,
    found: Probes,
    deadline: float,
) -> nn.Module:
    """Return a subject's network, built once.

    Raises:
        RuntimeError: No time is left.
        KdciError: It can not be built.
    """
    if time.monotonic() > deadline:
        raise RuntimeError("no time was left")
    if subject not in modules:
        modules[subject] = build_subject(subject, runtime)
        _weigh(subject, modules[subject], found)
    return modules[subject]


def _settle(runtime: Runtime) -> Callable[[], None]:
    if runtime.device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(runtime.device)
